use crate::{PjrtError, Value, proto};

/// Language of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// A serialised `xla.HloModuleProto`.
    Hlo,
    /// StableHLO, as text or as MLIR bytecode.
    Mlir,
}

impl Format {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Format::Hlo => "hlo",
            Format::Mlir => "mlir",
        }
    }
}

/// How a program is laid over devices, and how it is compiled.
///
/// Replicas run the program as it is, with the collectives that are in it. Partitions run what XLA's partitioner makes of
/// it by the shardings that it is marked with.
#[derive(Clone, Debug, PartialEq)]
pub struct CompileOptions {
    /// Copies of the program that run in parallel; at least 1.
    pub replicas: usize,
    /// Parts of each copy; at least 1.
    pub partitions: usize,
    /// The client's device for each partition of each replica, replica by replica; the plugin chooses if it is empty.
    pub devices: Vec<usize>,
    /// Flags of XLA for this program, such as `xla_allow_excess_precision`; lists are not among them.
    pub flags: Vec<(String, Value)>,
}

impl Default for CompileOptions {
    fn default() -> Self {
        CompileOptions { replicas: 1, partitions: 1, devices: Vec::new(), flags: Vec::new() }
    }
}

impl CompileOptions {
    /// As an `xla.CompileOptionsProto`; `ids` are the devices' ids in the plugin, by the client's order.
    ///
    /// Field numbers are those of `compile_options.proto` and `xla_data.proto` of OpenXLA.
    pub(crate) fn encode(&self, ids: &[i32]) -> Result<Vec<u8>, PjrtError> {
        self.check(ids.len())?;
        let mut build = Vec::new();
        proto::write_integer(&mut build, 4, self.replicas as u64);
        proto::write_integer(&mut build, 5, self.partitions as u64);
        if self.partitions > 1 {
            // XLA refuses several partitions without its partitioner.
            proto::write_integer(&mut build, 6, 1);
        }
        if !self.devices.is_empty() {
            proto::write_bytes(&mut build, 9, &self.assignment(ids));
        }
        let mut options = Vec::new();
        proto::write_bytes(&mut options, 3, &build);
        for (name, value) in &self.flags {
            let mut entry = Vec::new();
            proto::write_bytes(&mut entry, 1, name.as_bytes());
            proto::write_bytes(&mut entry, 2, &flag(name, value)?);
            proto::write_bytes(&mut options, 7, &entry);
        }
        Ok(options)
    }

    fn check(&self, device_count: usize) -> Result<(), PjrtError> {
        let wrong = |why: String| Err(PjrtError::Options { why });
        let (replicas, partitions) = (self.replicas, self.partitions);
        let count = replicas.saturating_mul(partitions);
        if count == 0 || count > device_count {
            return wrong(format!(
                "{replicas} replicas of {partitions} partitions on a client with {device_count} devices"
            ));
        }
        if !self.devices.is_empty() && self.devices.len() != count {
            return wrong(format!("{} devices for {count} programs", self.devices.len()));
        }
        if let Some(device) = self.devices.iter().find(|&&device| device >= device_count) {
            return wrong(format!("device {device} of a client with {device_count}"));
        }
        match (1..self.devices.len()).find(|&index| self.devices[..index].contains(&self.devices[index])) {
            Some(index) => wrong(format!("device {} is named twice", self.devices[index])),
            None => Ok(()),
        }
    }

    /// An `xla.DeviceAssignmentProto`: for each partition, the devices of its replicas.
    fn assignment(&self, ids: &[i32]) -> Vec<u8> {
        let mut assignment = Vec::new();
        proto::write_integer(&mut assignment, 1, self.replicas as u64);
        proto::write_integer(&mut assignment, 2, self.partitions as u64);
        for partition in 0..self.partitions {
            let mut packed = Vec::new();
            for replica in 0..self.replicas {
                let id = ids[self.devices[replica * self.partitions + partition]];
                proto::write_varint(&mut packed, i64::from(id) as u64);
            }
            let mut column = Vec::new();
            proto::write_bytes(&mut column, 1, &packed);
            proto::write_bytes(&mut assignment, 3, &column);
        }
        assignment
    }
}

/// An `xla.OptionOverrideProto`.
fn flag(name: &str, value: &Value) -> Result<Vec<u8>, PjrtError> {
    let mut option = Vec::new();
    match value {
        Value::String(text) => proto::write_bytes(&mut option, 1, text.as_bytes()),
        Value::Bool(value) => proto::write_integer(&mut option, 2, u64::from(*value)),
        Value::Int64(value) => proto::write_integer(&mut option, 3, *value as u64),
        Value::Float(value) => proto::write_double(&mut option, 4, f64::from(*value)),
        Value::Int64List(_) => {
            return Err(PjrtError::Options {
                why: format!("the flag {name} is a list, which XLA has none of"),
            });
        }
    }
    Ok(option)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes that every PJRT client sends for one device.
    #[test]
    fn one_device_is_the_six_known_bytes() {
        let bytes = CompileOptions::default().encode(&[0]).unwrap();
        assert_eq!(bytes, [0x1a, 0x04, 0x20, 0x01, 0x28, 0x01]);
    }

    /// Bytes from protoc's encoder for replica_count 2, computation_count 1, devices [7, 5].
    #[test]
    fn devices_are_named_by_their_ids() {
        let options = CompileOptions { replicas: 2, devices: vec![1, 0], ..Default::default() };
        let bytes = options.encode(&[5, 7]).unwrap();
        let assignment = [0x08, 2, 0x10, 1, 0x1a, 4, 0x0a, 2, 7, 5];
        let build = [&[0x20, 2, 0x28, 1, 0x4a, 10][..], &assignment].concat();
        assert_eq!(bytes, [&[0x1a, build.len() as u8][..], &build].concat());
    }

    #[test]
    fn contradictions_are_named() {
        let refused = |options: CompileOptions| options.encode(&[0, 1]).unwrap_err().to_string();
        let two = |devices| CompileOptions { replicas: 2, devices, ..Default::default() };
        assert!(refused(two(vec![0])).contains("1 devices for 2 programs"));
        assert!(refused(two(vec![1, 1])).contains("device 1 is named twice"));
        assert!(refused(two(vec![0, 2])).contains("device 2 of a client with 2"));
        assert!(refused(CompileOptions { replicas: 3, ..Default::default() }).contains("3 replicas"));
        assert!(refused(CompileOptions { partitions: 0, ..Default::default() }).contains("0 partitions"));
        let flags = vec![("xla_x".into(), Value::Int64List(vec![]))];
        assert!(refused(CompileOptions { flags, ..Default::default() }).contains("xla_x"));
    }
}
