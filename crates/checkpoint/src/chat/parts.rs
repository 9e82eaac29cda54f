//! Message content as a string or as a list of parts, whichever the template reads.

use std::borrow::Cow;

use serde_json::{Value as Json, json};

use super::{ChatError, ChatInput, ChatTemplate};

/// The form of `content` that a template reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ContentForm {
    /// Both, or neither is certain.
    AsGiven,
    /// Only strings: text parts are joined with newlines.
    Strings,
    /// Only lists of parts: a string becomes one text part.
    Parts,
}

const PROBE: &str = "content-form-probe";

impl ContentForm {
    /// Finds out by rendering a message in either form.
    pub(super) fn probe(template: &ChatTemplate) -> Self {
        let reads = |content: Json| {
            let messages = [json!({ "role": "user", "content": content })];
            let input = ChatInput { messages: &messages, ..ChatInput::default() };
            // A list printed whole also contains the text, and quotes around it.
            let quoted = [format!("'{PROBE}'"), format!("\"{PROBE}\"")];
            let rendered = template.render_as_is(&input).unwrap_or_default();
            rendered.contains(PROBE) && !quoted.iter().any(|quoted| rendered.contains(quoted))
        };
        match (reads(json!(PROBE)), reads(json!([{ "type": "text", "text": PROBE }]))) {
            (true, false) => Self::Strings,
            (false, true) => Self::Parts,
            _ => Self::AsGiven,
        }
    }

    /// The messages with their content in this form.
    pub(super) fn messages(self, messages: &[Json]) -> Result<Cow<'_, [Json]>, ChatError> {
        if messages.iter().all(|message| self.fits(&message["content"])) {
            return Ok(messages.into());
        }
        let convert = |(index, message): (usize, &Json)| {
            let mut message = message.clone();
            if !self.fits(&message["content"]) {
                let content = match &message["content"] {
                    Json::Array(parts) => {
                        join(parts).map_err(|problem| ChatError::Content { index, problem })?.into()
                    }
                    text => json!([{ "type": "text", "text": text }]),
                };
                message["content"] = content;
            }
            Ok(message)
        };
        messages.iter().enumerate().map(convert).collect::<Result<Vec<_>, _>>().map(Cow::Owned)
    }

    fn fits(self, content: &Json) -> bool {
        match self {
            Self::AsGiven => true,
            Self::Strings => !content.is_array(),
            Self::Parts => !content.is_string(),
        }
    }
}

fn join(parts: &[Json]) -> Result<String, String> {
    let text = |part: &Json| match (part["type"].as_str(), part["text"].as_str()) {
        (None | Some("text" | "input_text" | "output_text"), Some(text)) => Ok(text.to_owned()),
        (Some(other), _) => {
            Err(format!("the model's chat template takes text only, and a part is of type {other:?}"))
        }
        (None, None) => Err("a part has neither \"type\" nor \"text\"".to_owned()),
    };
    Ok(parts.iter().map(text).collect::<Result<Vec<_>, _>>()?.join("\n"))
}
