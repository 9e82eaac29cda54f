use samebits_tensor::{Backend, Format, HostTensor, Result};

use crate::Case;

/// What the suite examines: every [`Backend`], and whatever else can compute a [`Case`].
pub trait Subject {
    /// Name for the report.
    fn name(&self) -> String;
    /// Whether weights of this format are taken. Cases of others are reported as skipped.
    fn takes(&self, format: Format) -> bool;
    /// The results of a case.
    ///
    /// # Errors
    /// What the subject cannot do; the case then counts as failed.
    fn run(&self, case: &Case) -> Result<Vec<HostTensor>>;
}

impl<B: Backend> Subject for B {
    fn name(&self) -> String {
        let capabilities = self.capabilities();
        format!("{} ({})", capabilities.name, capabilities.device)
    }

    fn takes(&self, format: Format) -> bool {
        self.capabilities().formats.contains(&format)
    }

    fn run(&self, case: &Case) -> Result<Vec<HostTensor>> {
        case.run(self)
    }
}
