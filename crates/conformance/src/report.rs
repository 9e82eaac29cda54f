use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
};

use samebits_cpu::Host;
use samebits_tensor::HostTensor;

use crate::{Case, Check, Group, Invariance, Skip, Subject, compare};

/// What a subject did with the whole suite.
#[derive(Clone, Debug)]
pub struct Report {
    /// The subject's name.
    pub subject: String,
    /// One report a group.
    pub groups: Vec<GroupReport>,
}

/// What a subject did with one group.
#[derive(Clone, Debug)]
pub struct GroupReport {
    /// The group.
    pub group: Group,
    /// Cases that ran.
    pub cases: usize,
    /// Cases that ran and did not pass.
    pub failures: Vec<Failure>,
    /// Names of cases that did not run, with the reason.
    pub skipped: Vec<(String, String)>,
}

/// A case that did not pass.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Its name.
    pub case: String,
    /// The difference, the subject's error or its panic.
    pub detail: String,
}

impl Report {
    /// Whether every case that ran passed.
    pub fn is_clean(&self) -> bool {
        self.groups.iter().all(|group| group.failures.is_empty())
    }

    /// Cases that ran.
    pub fn cases(&self) -> usize {
        self.groups.iter().map(|group| group.cases).sum()
    }
}

impl GroupReport {
    pub(crate) fn new(group: Group) -> Self {
        GroupReport { group, cases: 0, failures: Vec::new(), skipped: Vec::new() }
    }

    /// Panics with the whole report where a case did not pass. For tests.
    pub fn expect_clean(&self) {
        assert!(self.failures.is_empty(), "{self}");
    }

    pub(crate) fn record(&mut self, subject: &impl Subject, check: &Check, skips: &[Skip]) {
        if let Some(reason) = reason_to_skip(subject, check, skips) {
            self.skipped.push((check.name().to_owned(), reason));
            return;
        }
        self.cases += 1;
        let detail = match check {
            Check::Reference(case) => against_host(subject, case),
            Check::Invariance(invariance) => against_itself(subject, invariance),
        };
        if let Err(detail) = detail {
            self.failures.push(Failure { case: check.name().to_owned(), detail });
        }
    }
}

fn reason_to_skip(subject: &impl Subject, check: &Check, skips: &[Skip]) -> Option<String> {
    if let Some(skip) = skips.iter().find(|skip| check.name().contains(skip.pattern)) {
        return Some(skip.reason.to_owned());
    }
    let formats = check.cases().flat_map(|case| &case.weights).map(|weight| weight.format);
    let absent = formats.into_iter().find(|&format| !subject.takes(format))?;
    Some(format!("the subject does not take the format {absent}"))
}

fn against_host(subject: &impl Subject, case: &Case) -> Result<(), String> {
    let expected = case.run(&Host).map_err(|error| format!("the reference failed: {error}"))?;
    let found = run(subject, case)?;
    match compare(&expected, &found, case.zero_sign_is_open()) {
        None => Ok(()),
        Some(difference) => Err(difference.to_string()),
    }
}

fn against_itself(subject: &impl Subject, invariance: &Invariance) -> Result<(), String> {
    let whole = run(subject, &invariance.whole)?;
    let part = run(subject, &invariance.part)?;
    let rows = select_rows(&whole[0], &invariance.rows)?;
    match compare(&[rows], &part[..1], false) {
        None => Ok(()),
        Some(difference) => {
            Err(format!("{} against {}: {difference}", invariance.part.name, invariance.whole.name))
        }
    }
}

/// Runs a case; an error or a panic of the subject is the failure's detail.
fn run(subject: &impl Subject, case: &Case) -> Result<Vec<HostTensor>, String> {
    match catch_unwind(AssertUnwindSafe(|| subject.run(case))) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(payload) => {
            let text = payload.downcast_ref::<String>().cloned();
            let text = text.or_else(|| payload.downcast_ref::<&str>().map(|&text| text.to_owned()));
            Err(format!("panicked: {}", text.unwrap_or_default()))
        }
    }
}

fn select_rows(x: &HostTensor, rows: &[usize]) -> Result<HostTensor, String> {
    let row_bytes = x.bytes().len() / x.shape()[0].max(1);
    let bytes: Vec<u8> =
        rows.iter().flat_map(|row| &x.bytes()[row * row_bytes..(row + 1) * row_bytes]).copied().collect();
    HostTensor::new(x.shape().with(0, rows.len()), x.dtype(), bytes.into()).map_err(|error| error.to_string())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failures: usize = self.groups.iter().map(|group| group.failures.len()).sum();
        writeln!(f, "{}: {} cases, {failures} failed", self.subject, self.cases())?;
        self.groups.iter().try_for_each(|group| writeln!(f, "  {group}"))
    }
}

impl fmt::Display for GroupReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        write!(f, "{:<18} {:>4} cases", self.group.name(), self.cases)?;
        if !self.skipped.is_empty() {
            write!(f, ", {} skipped", self.skipped.len())?;
        }
        write!(f, ", {} failed", self.failures.len())?;
        let mut reasons: Vec<&str> = self.skipped.iter().map(|(_, reason)| reason.as_str()).collect();
        reasons.sort_unstable();
        reasons.dedup();
        for reason in reasons {
            let count = self.skipped.iter().filter(|(_, other)| other == reason).count();
            write!(f, "\n    {count} skipped: {reason}")?;
        }
        for Failure { case, detail } in self.failures.iter().take(SHOWN) {
            write!(
                f,
                "\n    {case}: {detail}\n      reproduce: SAMEBITS_CASE='{case}' cargo test {}",
                self.group.name()
            )?;
        }
        let more = self.failures.len().saturating_sub(SHOWN);
        if more > 0 {
            write!(f, "\n    and {more} more")?;
        }
        Ok(())
    }
}
