use std::{collections::HashMap, str::FromStr};

use samebits_neuron::abi::Status;

/// Statuses that calls return instead of doing anything.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    planned: Vec<Fault>,
    calls: HashMap<&'static str, u64>,
}

#[derive(Debug)]
struct Fault {
    function: String,
    /// Every call if nothing.
    nth: Option<u64>,
    status: Status,
}

impl Faults {
    /// Counts a call. Fails if that is planned.
    pub(crate) fn enter(&mut self, function: &'static str) -> Result<(), Status> {
        let calls = self.calls.entry(function).or_default();
        *calls += 1;
        let is_due = |fault: &&Fault| fault.function == function && fault.nth.is_none_or(|nth| nth == *calls);
        self.planned.iter().find(is_due).map_or(Ok(()), |fault| Err(fault.status))
    }

    /// Calls of a function.
    pub(crate) fn calls(&self, function: &str) -> u64 {
        self.calls.get(function).copied().unwrap_or(0)
    }
}

impl FromStr for Faults {
    type Err = ();

    /// `function:nth=status` of each, with commas between.
    fn from_str(plan: &str) -> Result<Self, ()> {
        let planned: Result<_, ()> =
            plan.split(',').filter(|it| !it.is_empty()).map(|it| fault(it).ok_or(())).collect();
        Ok(Faults { planned: planned?, calls: HashMap::new() })
    }
}

fn fault(text: &str) -> Option<Fault> {
    let (function, rest) = text.split_once(':')?;
    let (nth, status) = rest.split_once('=')?;
    let nth = if nth == "*" { None } else { Some(nth.parse().ok()?) };
    Some(Fault { function: function.trim().into(), nth, status: Status::of(status.parse().ok()?)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_call_whose_turn_it_is_fails() {
        let mut faults: Faults = "nrt_load:2=4,nrt_execute:*=1006".parse().unwrap();
        assert_eq!(faults.enter("nrt_load"), Ok(()));
        assert_eq!(faults.enter("nrt_load"), Err(Status::Resource));
        assert_eq!(faults.enter("nrt_load"), Ok(()));
        assert_eq!(faults.enter("nrt_execute"), Err(Status::OutOfBounds));
        assert_eq!(faults.enter("nrt_execute"), Err(Status::OutOfBounds));
        assert_eq!((faults.calls("nrt_load"), faults.calls("nrt_init")), (3, 0));
    }

    #[test]
    fn what_is_no_plan_is_refused() {
        for plan in ["nrt_load", "nrt_load:1", "nrt_load:x=1", "nrt_load:1=0", "nrt_load:1=x"] {
            assert!(plan.parse::<Faults>().is_err(), "{plan}");
        }
        assert!("".parse::<Faults>().is_ok());
    }
}
