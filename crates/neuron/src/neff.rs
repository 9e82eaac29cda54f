use std::fmt;

/// A NEFF, what neuronx-cc makes and the runtime loads: a header of 1,024 bytes, and an archive.
///
/// The layout is that of `neff.h` in the Neuron runtime's public headers: little-endian, packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neff<'a> {
    /// The header.
    pub header: Header,
    /// The archive.
    pub archive: &'a [u8],
}

/// What the header tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Version of the file format.
    pub package_version: u64,
    /// Version of the program format, before the point.
    pub major: u64,
    /// Version of the program format, behind the point.
    pub minor: u64,
    /// Words of the compiler about itself.
    pub build: [u8; 128],
    /// Cores that the program runs on.
    pub cores: u32,
    /// Of the archive.
    pub hash: [u8; 32],
    /// Of this file.
    pub uuid: [u8; 16],
    /// Of the program.
    pub name: [u8; 256],
    /// Cores that were asked for.
    pub requested_cores: u32,
    /// Cores of each node of the program.
    pub node_cores: [u8; 64],
    /// What the runtime must be able to do.
    pub features: u64,
    /// Physical cores of a logical one; 0 before there were logical ones.
    pub logical_core_size: u32,
}

/// Why bytes are no NEFF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NeffError {
    /// Too few bytes for a header.
    #[error("{found} bytes, and the header of a NEFF alone has 1024; compile the module again")]
    Short {
        /// How many there are.
        found: usize,
    },
    /// A header of another size.
    #[error("a header of {found} bytes, and that of a NEFF has 1024; give a file that neuronx-cc made")]
    HeaderSize {
        /// Its size, by itself.
        found: u64,
    },
    /// An archive that was cut, or is followed by something.
    #[error("an archive of {found} bytes where {expected} are told; compile the module again")]
    ArchiveSize {
        /// As the header tells.
        expected: u64,
        /// How many there are.
        found: usize,
    },
}

/// Bytes of the header.
pub const HEADER_BYTES: usize = 1024;

impl<'a> Neff<'a> {
    /// Reads a NEFF. What is in the archive is not looked at.
    ///
    /// # Errors
    /// If it is too short, too long, or not a NEFF.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, NeffError> {
        let short = NeffError::Short { found: bytes.len() };
        let (head, archive) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(short)?;
        let header_size = number(head, 8);
        if header_size != HEADER_BYTES as u64 {
            return Err(NeffError::HeaderSize { found: header_size });
        }
        let expected = number(head, 16);
        if expected != archive.len() as u64 {
            return Err(NeffError::ArchiveSize { expected, found: archive.len() });
        }
        Ok(Neff { header: Header::read(head), archive })
    }

    /// The bytes of the file.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = self.header.write(self.archive.len()).to_vec();
        bytes.extend_from_slice(self.archive);
        bytes
    }
}

impl Header {
    /// For one core, with nothing told but a name, of which the first 255 bytes are kept.
    pub fn new(name: &str) -> Self {
        let mut header = Header::read(&[0; HEADER_BYTES]);
        let kept = name.len().min(header.name.len() - 1);
        header.name[..kept].copy_from_slice(&name.as_bytes()[..kept]);
        Header { package_version: 2, major: 2, cores: 1, requested_cores: 1, ..header }
    }

    /// The name as text.
    pub fn name(&self) -> String {
        let end = self.name.iter().position(|&byte| byte == 0).unwrap_or(self.name.len());
        String::from_utf8_lossy(&self.name[..end]).into_owned()
    }

    fn read(head: &[u8; HEADER_BYTES]) -> Self {
        Header {
            package_version: number(head, 0),
            major: number(head, 24),
            minor: number(head, 32),
            build: part(head, 40),
            cores: u32::from_le_bytes(part(head, 168)),
            hash: part(head, 172),
            uuid: part(head, 204),
            name: part(head, 220),
            requested_cores: u32::from_le_bytes(part(head, 476)),
            node_cores: part(head, 480),
            features: number(head, 544),
            logical_core_size: u32::from_le_bytes(part(head, 552)),
        }
    }

    fn write(&self, archive: usize) -> [u8; HEADER_BYTES] {
        let mut head = [0; HEADER_BYTES];
        let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.package_version.to_le_bytes());
        put(8, &(HEADER_BYTES as u64).to_le_bytes());
        put(16, &(archive as u64).to_le_bytes());
        put(24, &self.major.to_le_bytes());
        put(32, &self.minor.to_le_bytes());
        put(40, &self.build);
        put(168, &self.cores.to_le_bytes());
        put(172, &self.hash);
        put(204, &self.uuid);
        put(220, &self.name);
        put(476, &self.requested_cores.to_le_bytes());
        put(480, &self.node_cores);
        put(544, &self.features.to_le_bytes());
        put(552, &self.logical_core_size.to_le_bytes());
        head
    }
}

fn number(head: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from_le_bytes(part(head, at))
}

/// The bytes at a fixed place, which is within the header.
fn part<const N: usize>(head: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    std::array::from_fn(|i| head[at + i])
}

impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (NEFF {}.{}, {} cores)", self.name(), self.major, self.minor, self.cores)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_field_is_where_the_runtime_has_it() {
        let mut bytes: Vec<u8> = (0..HEADER_BYTES).map(|at| (at % 251) as u8).collect();
        bytes[8..16].copy_from_slice(&1024u64.to_le_bytes());
        bytes[16..24].copy_from_slice(&3u64.to_le_bytes());
        bytes.extend_from_slice(b"tar");
        let Neff { header, archive } = Neff::parse(&bytes).unwrap();
        assert_eq!(archive, b"tar");
        assert_eq!(header.package_version, 0x0706_0504_0302_0100);
        assert_eq!((header.major.to_le_bytes()[0], header.minor.to_le_bytes()[0]), (24, 32));
        assert_eq!((header.build[0], header.cores.to_le_bytes()[0]), (40, 168));
        assert_eq!((header.hash[0], header.uuid[0], header.name[0]), (172, 204, 220));
        assert_eq!(header.requested_cores.to_le_bytes()[0], (476 % 251) as u8);
        assert_eq!(
            (header.node_cores[0], header.features.to_le_bytes()[0]),
            ((480 % 251) as u8, (544 % 251) as u8)
        );
        assert_eq!(header.logical_core_size.to_le_bytes()[0], (552 % 251) as u8);
    }

    #[test]
    fn files_that_are_not_whole_are_named() {
        let whole = Neff { header: Header::new("layer"), archive: b"archive" }.to_vec();
        assert_eq!(Neff::parse(&whole).unwrap().header.name(), "layer");
        assert_eq!(Neff::parse(&whole[..1000]), Err(NeffError::Short { found: 1000 }));
        let cut = NeffError::ArchiveSize { expected: 7, found: 3 };
        assert_eq!(Neff::parse(&whole[..1027]), Err(cut));
        assert_eq!(Neff::parse(&[0; 2000]), Err(NeffError::HeaderSize { found: 0 }));
        assert!(cut.to_string().contains("compile"));
    }

    #[test]
    fn a_long_name_is_cut() {
        assert_eq!(Header::new(&"é".repeat(300)).name().chars().filter(|&it| it == 'é').count(), 127);
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(mut bytes in proptest::collection::vec(any::<u8>(), 0..1100), honest: bool) {
            if honest && bytes.len() >= HEADER_BYTES {
                let archive = (bytes.len() - HEADER_BYTES) as u64;
                bytes[8..16].copy_from_slice(&1024u64.to_le_bytes());
                bytes[16..24].copy_from_slice(&archive.to_le_bytes());
            }
            match Neff::parse(&bytes) {
                Ok(neff) => prop_assert_eq!(&neff.archive, &&bytes[HEADER_BYTES..]),
                Err(error) => prop_assert!(!error.to_string().is_empty()),
            }
        }

        #[test]
        fn headers_come_back(cores: u32, features: u64, name in "[a-z]{0,40}", archive: Vec<u8>) {
            let header = Header { cores, features, ..Header::new(&name) };
            let bytes = Neff { header, archive: &archive }.to_vec();
            prop_assert_eq!(Neff::parse(&bytes), Ok(Neff { header, archive: &archive }));
        }
    }
}
