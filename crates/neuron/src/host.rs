use std::{env, fs, path::Path};

use samebits_hlo::{Chip, Target};

use crate::NeuronError;

/// Where the Neuron driver tells the type of the first device: `Inf2`, `Trn2`.
const INSTANCE_TYPE: &str = "/sys/devices/virtual/neuron_device/neuron0/info/architecture/instance_type";

/// The chip of this host, as the Neuron driver tells.
///
/// # Errors
/// [`NeuronError::UnknownChip`] if it does not.
pub fn host_chip() -> Result<Chip, NeuronError> {
    let path = Path::new(INSTANCE_TYPE);
    let told = fs::read_to_string(path).ok();
    told.and_then(|told| chip_of(&told)).ok_or_else(|| NeuronError::UnknownChip { path: path.into() })
}

fn chip_of(instance_type: &str) -> Option<Chip> {
    let told = instance_type.trim().to_ascii_lowercase();
    // Variants such as Trn1n have their chip's name in front.
    Chip::ALL.into_iter().find(|chip| told.starts_with(chip.name()))
}

/// Physical cores that the runtime takes as one: what `NEURON_LOGICAL_NC_CONFIG` says, or 2 where the chip can.
///
/// # Errors
/// [`NeuronError::LogicalCores`] if that is no number.
pub fn cores_per_logical_core(chip: Chip) -> Result<u32, NeuronError> {
    match env::var("NEURON_LOGICAL_NC_CONFIG").ok().filter(|value| !value.is_empty()) {
        Some(found) => found.parse().map_err(|_| NeuronError::LogicalCores { found, expected: None }),
        None => Ok(if chip >= Chip::Trn2 { 2 } else { 1 }),
    }
}

/// Memory of one core of a target: its part of the chip's, as AWS states that.
pub fn core_memory_bytes(target: Target) -> u64 {
    let physical_gib = match target.chip {
        Chip::Inf2 | Chip::Trn1 => 32 / 2,
        Chip::Trn2 => 96 / 8,
        Chip::Trn3 => 144 / 8,
    };
    (physical_gib << 30) * u64::from(target.cores_per_logical_core)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chips_are_known_by_their_instances() {
        let chips = ["Inf2\n", "Trn1n", "trn2u", "Trn3"].map(chip_of);
        assert_eq!(chips, [Chip::Inf2, Chip::Trn1, Chip::Trn2, Chip::Trn3].map(Some));
        assert_eq!((chip_of("Inf1"), chip_of("")), (None, None));
    }

    #[test]
    fn logical_cores_share_the_memory_of_their_parts() {
        let bytes = |chip, cores| core_memory_bytes(Target { chip, cores_per_logical_core: cores }) >> 30;
        assert_eq!((bytes(Chip::Inf2, 1), bytes(Chip::Trn2, 2), bytes(Chip::Trn3, 1)), (16, 24, 18));
    }
}
