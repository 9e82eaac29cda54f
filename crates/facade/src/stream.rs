use std::sync::mpsc::Receiver;

use samebits_engine::{Event, FinishReason, RequestId, Usage};

use crate::{Error, Service, ServiceError};

/// A whole answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The text, without what stopped it.
    pub text: String,
    /// The output tokens, with one that stopped it.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens used.
    pub usage: Usage,
}

/// An answer as it is made: an iterator of pieces of text. Dropping it cancels the request.
pub struct Stream {
    service: Service,
    id: RequestId,
    events: Receiver<Event>,
    tokens: Vec<u32>,
    end: Option<(FinishReason, Usage)>,
    failed: bool,
}

impl Stream {
    pub(crate) fn new(service: Service, id: RequestId, events: Receiver<Event>) -> Self {
        Stream { service, id, events, tokens: Vec::new(), end: None, failed: false }
    }

    /// Output tokens so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Why the answer ended and the tokens it used, once it has.
    pub fn end(&self) -> Option<(FinishReason, Usage)> {
        self.end
    }

    /// Waits for the rest.
    ///
    /// # Errors
    /// Why the request failed.
    pub fn finish(mut self) -> Result<Generation, Error> {
        let text = self.by_ref().collect::<Result<String, Error>>()?;
        let (finish_reason, usage) = self.end.ok_or(ServiceError::Stopped)?;
        Ok(Generation { text, tokens: std::mem::take(&mut self.tokens), finish_reason, usage })
    }
}

impl Iterator for Stream {
    type Item = Result<String, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.end.is_some() || self.failed {
            return None;
        }
        match self.events.recv() {
            Ok(Event::Token { token, text, .. }) => {
                self.tokens.push(token);
                Some(Ok(text))
            }
            Ok(Event::Finished { reason, usage, .. }) => {
                self.end = Some((reason, usage));
                None
            }
            Ok(Event::Failed { error, .. }) => {
                self.failed = true;
                Some(Err(error.into()))
            }
            Err(_) => {
                self.failed = true;
                Some(Err(ServiceError::Stopped.into()))
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.end.is_none() && !self.failed {
            self.service.cancel(self.id);
        }
    }
}
