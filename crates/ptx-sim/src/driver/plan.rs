//! Statuses that calls return because a test wants it.
//!
//! `cuMemAllocAsync:3=2` lets the third call of a function return status 2; `:3+=2` that call and all after it; `=999!` lets
//! every call of any function return it from then on, as from a device that is lost. Several are joined by commas.

use std::{collections::HashMap, env, str::FromStr};

use super::Status;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Planned {
    function: String,
    call: u64,
    onwards: bool,
    status: Status,
    sticky: bool,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Plan {
    planned: Vec<Planned>,
    calls: HashMap<&'static str, u64>,
}

impl Plan {
    pub(super) fn from_environment() -> Self {
        let text = env::var("PTX_SIM_FAULTS").unwrap_or_default();
        text.parse().unwrap_or_else(|error| {
            eprintln!("ptx-sim: PTX_SIM_FAULTS={text}: {error}");
            std::process::exit(2);
        })
    }

    /// Counts a call, and says whether it fails, and whether all others do from now on.
    pub(super) fn call(&mut self, function: &'static str) -> Option<(Status, bool)> {
        let calls = self.calls.entry(function).or_default();
        *calls += 1;
        let now = *calls;
        let fails = |planned: &&Planned| {
            planned.function == function && (now == planned.call || planned.onwards && now > planned.call)
        };
        self.planned.iter().find(fails).map(|planned| (planned.status, planned.sticky))
    }

    pub(super) fn calls(&self, function: &str) -> u64 {
        self.calls.get(function).copied().unwrap_or(0)
    }
}

impl FromStr for Plan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let planned = text.split(',').filter(|part| !part.is_empty()).map(planned).collect::<Option<_>>();
        let planned = planned.ok_or("function:call=status is expected, as cuMemAllocAsync:3=2")?;
        Ok(Plan { planned, calls: HashMap::new() })
    }
}

fn planned(text: &str) -> Option<Planned> {
    let (call, status) = text.split_once('=')?;
    let (function, call) = call.split_once(':')?;
    let (call, onwards) = call.strip_suffix('+').map_or((call, false), |call| (call, true));
    let (status, sticky) = status.strip_suffix('!').map_or((status, false), |status| (status, true));
    Some(Planned {
        function: function.into(),
        call: call.parse().ok()?,
        onwards,
        status: Status(status.parse().ok()?),
        sticky,
    })
}
