//! What environment variables and tests set.

use std::{env, fmt::Display, str::FromStr};

use crate::mutate::Mutation;

/// In which order the warps of a block run between barriers, and the blocks of a grid.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Order {
    /// From the first.
    #[default]
    Ascending,
    /// From the last.
    Descending,
    /// A permutation that this seed gives.
    Seeded(u64),
}

impl FromStr for Order {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "ascending" => Ok(Order::Ascending),
            "descending" => Ok(Order::Descending),
            seed => seed
                .parse()
                .map(Order::Seeded)
                .map_err(|_| "ascending, descending or a seed is expected".into()),
        }
    }
}

impl Order {
    /// The numbers below `count`, in this order.
    pub(crate) fn permutation(self, count: usize) -> Vec<usize> {
        let mut numbers: Vec<usize> = (0..count).collect();
        match self {
            Order::Ascending => {}
            Order::Descending => numbers.reverse(),
            Order::Seeded(seed) => {
                let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
                for last in (1..count).rev() {
                    state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                    numbers.swap(last, ((state >> 33) % (last as u64 + 1)) as usize);
                }
            }
        }
        numbers
    }
}

impl Order {
    /// Which of `count` blocks runs as the `turn`th.
    pub(crate) fn position(self, turn: u64, count: u64) -> u64 {
        match self {
            Order::Ascending => turn,
            Order::Descending => count - 1 - turn,
            // A step that shares no factor with the count visits each once.
            Order::Seeded(seed) => {
                let first = seed % count + 1;
                let step = (first..first + 1000).find(|&step| common_divisor(step, count) == 1).unwrap_or(1);
                ((u128::from(turn) * u128::from(step) + u128::from(seed)) % u128::from(count)) as u64
            }
        }
    }
}

fn common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

/// Checks that cost time. Bounds, alignment, barriers and masks are always checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checks {
    /// Registers are written before they are read.
    pub registers: bool,
    /// Shared memory is written before it is read, and barriers are between threads that use the same bytes.
    pub shared: bool,
    /// Global memory is written before it is read.
    pub global: bool,
    /// Blocks of a launch do not use the same bytes of global memory, if one writes.
    pub blocks: bool,
}

impl Default for Checks {
    fn default() -> Self {
        Checks { registers: true, shared: true, global: true, blocks: false }
    }
}

impl FromStr for Checks {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut checks = Checks { registers: false, shared: false, global: false, blocks: false };
        for name in text.split(',').filter(|name| !name.is_empty()) {
            match name {
                "none" => {}
                "all" => checks = Checks { registers: true, shared: true, global: true, blocks: true },
                "registers" => checks.registers = true,
                "shared" => checks.shared = true,
                "global" => checks.global = true,
                "blocks" => checks.blocks = true,
                _ => {
                    return Err(format!(
                        "{name} is no check: registers, shared, global, blocks, all or none"
                    ));
                }
            }
        }
        Ok(checks)
    }
}

/// The device that is played, and how kernels run on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Devices; 0 is `CUDA_ERROR_NO_DEVICE`.
    pub devices: i32,
    /// Compute capability, 90 for 9.0.
    pub capability: u32,
    /// As `cuDriverGetVersion` has it, 13000 for 13.0.
    pub driver_version: i32,
    /// Memory of each device.
    pub memory_bytes: u64,
    /// Host threads that run blocks.
    pub threads: usize,
    /// The order of warps and blocks.
    pub order: Order,
    /// The checks.
    pub checks: Checks,
    /// The most instructions that a warp executes.
    pub instruction_limit: u64,
    /// Whether sectors and bank conflicts are counted.
    pub count_memory: bool,
    /// What is changed in a kernel.
    pub mutation: Option<Mutation>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            devices: 1,
            capability: 90,
            driver_version: 13000,
            memory_bytes: 16 << 30,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            order: Order::Ascending,
            checks: Checks::default(),
            instruction_limit: 1 << 28,
            count_memory: false,
            mutation: None,
        }
    }
}

impl Settings {
    /// Those of the environment; a value that is not understood is said on stderr, and the process ends, since a test that runs
    /// under other settings than were asked for would say nothing.
    pub(crate) fn from_environment() -> Self {
        let mut settings =
            Settings { count_memory: env::var_os("PTX_SIM_REPORT").is_some(), ..Settings::default() };
        for (name, value) in env::vars().filter(|(name, _)| NAMES.contains(&name.as_str())) {
            if let Err(error) = settings.set(&name, &value) {
                eprintln!("ptx-sim: {name}={value}: {error}");
                std::process::exit(2);
            }
        }
        settings
    }

    /// Sets what an environment variable says.
    pub(crate) fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        fn number<T: FromStr<Err: Display>>(value: &str) -> Result<T, String> {
            value.parse().map_err(|error: T::Err| error.to_string())
        }
        match name {
            "PTX_SIM_DEVICES" => self.devices = number(value)?,
            "PTX_SIM_CAPABILITY" => self.capability = number(value)?,
            "PTX_SIM_DRIVER" => self.driver_version = number(value)?,
            "PTX_SIM_BYTES" => self.memory_bytes = number(value)?,
            "PTX_SIM_THREADS" => self.threads = number::<usize>(value)?.max(1),
            "PTX_SIM_WARPS" => self.order = value.parse()?,
            "PTX_SIM_CHECKS" => self.checks = value.parse()?,
            "PTX_SIM_LIMIT" => self.instruction_limit = number(value)?,
            "PTX_SIM_COUNT" => self.count_memory = value != "0",
            "PTX_SIM_MUTATE" => self.mutation = if value.is_empty() { None } else { Some(value.parse()?) },
            _ => return Err("there is no such setting".into()),
        }
        Ok(())
    }
}

/// The environment variables that are settings.
const NAMES: [&str; 10] = [
    "PTX_SIM_DEVICES",
    "PTX_SIM_CAPABILITY",
    "PTX_SIM_DRIVER",
    "PTX_SIM_BYTES",
    "PTX_SIM_THREADS",
    "PTX_SIM_WARPS",
    "PTX_SIM_CHECKS",
    "PTX_SIM_LIMIT",
    "PTX_SIM_COUNT",
    "PTX_SIM_MUTATE",
];
