use std::{fmt, str::FromStr};

/// How the bytes of a weight encode its values.
///
/// The block formats are those of ggml (`ggml-common.h`). A row is cut in blocks of [`Format::block_len`] columns,
/// each [`Format::block_bytes`] bytes long. Numbers are little-endian. "Nibble pairs" over `n` bytes hold `2n`
/// values: byte `j` has value `j` in its low and value `j + n` in its high four bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Format {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16.
    BF16,
    /// `d * (q - 8)`. 0: f16 d; 2: 16 bytes of nibble pairs.
    Q4_0,
    /// `d * q + m`. 0: f16 d; 2: f16 m; 4: 16 bytes of nibble pairs.
    Q4_1,
    /// `d * (q - 16)`. 0: f16 d; 2: u32 whose bit `i` is the fifth bit of value `i`; 6: 16 bytes of nibble pairs.
    Q5_0,
    /// `d * q + m`. 0: f16 d; 2: f16 m; 4: u32 of fifth bits as in `Q5_0`; 8: 16 bytes of nibble pairs.
    Q5_1,
    /// `d * q`. 0: f16 d; 2: 32 i8.
    Q8_0,
    /// `(d * sc) * q - dmin * sm`, sub-blocks of 16. 0: 16 bytes, one a sub-block, sc in the low and sm in the high
    /// four bits; 16: 64 bytes of 2-bit values, value `128h + 32j + l` in bits `2j..2j+2` of byte `32h + l`;
    /// 80: f16 d; 82: f16 dmin.
    Q2K,
    /// `(d * (sc - 32)) * (q - 4)`, sub-blocks of 16. 0: 32 bytes of third bits, that of value `128h + 32j + l` in bit
    /// `4h + j` of byte `l`; 32: 64 bytes of low two bits as in `Q2K`; 96: 12 bytes of 6-bit sc: the low four bits of
    /// `sc[i]` and `sc[i + 8]` are the low and high half of byte `i < 8`, and the high two bits of `sc[i]` are bits
    /// `2(i/4)..` of byte `8 + i % 4`; 108: f16 d.
    Q3K,
    /// `(d * sc) * q - dmin * sm`, sub-blocks of 32. 0: f16 d; 2: f16 dmin; 4: 12 bytes of 6-bit pairs: for `i < 4`,
    /// `sc[i]` and `sm[i]` are the low six bits of bytes `i` and `4 + i`; the low four bits of `sc[4 + i]` and
    /// `sm[4 + i]` are the low and high half of byte `8 + i`, and their high two bits the top of bytes `i` and `4 + i`;
    /// 16: four times 32 bytes of nibble pairs.
    Q4K,
    /// As `Q4K`, with fifth bits. 0: f16 d; 2: f16 dmin; 4: 12 bytes of 6-bit pairs; 16: 32 bytes, bit `i` of byte `l`
    /// being the fifth bit of value `32i + l`; 48: four times 32 bytes of nibble pairs.
    Q5K,
    /// `(d * sc) * (q - 32)`, sub-blocks of 16. 0: twice 64 bytes of nibble pairs, the low four bits; 128: 64 bytes of
    /// high two bits, laid out as `Q2K`'s values; 192: 16 i8 sc; 208: f16 d.
    Q6K,
    /// `d * table[q]` with a fixed table of 16 signed bytes. 0: f16 d; 2: 16 bytes of nibble pairs.
    Iq4Nl,
    /// OCP microscaling FP4, `2^(e - 128) * table[q]` with twice the e2m1 values. 0: u8 e; 1: 16 bytes of nibble pairs.
    /// As in ggml, e = 0 is `2^-128` and e = 255 is `2^127`, not a NaN.
    Mxfp4,
}

/// The shape of a format's blocks, which decides the form of its dot product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FormatKind {
    /// Plain floats.
    Dense,
    /// Blocks of 32 values with one f32 scale.
    Blocks32 {
        /// Whether a block also has a minimum, which is added.
        min: bool,
    },
    /// Blocks of 256 values with one f32 scale and an integer scale for each sub-block.
    Blocks256 {
        /// Values in a sub-block: 16 or 32.
        sub_len: usize,
        /// Whether a block also has a minimum's scale, and an integer minimum for each sub-block; subtracted.
        min: bool,
    },
}

/// A format that is not known or not supported, or data that does not fit one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// A format of ggml's that this crate does not decode.
    #[error(
        "weight format {name} (ggml type {ggml_type}) is not supported; use a file quantised as {}",
        Names
    )]
    Unsupported {
        /// ggml's name.
        name: &'static str,
        /// ggml's number.
        ggml_type: u32,
    },
    /// A number that no known version of ggml uses.
    #[error("ggml type {ggml_type} is not known; the file is damaged or newer than this program")]
    UnknownType {
        /// The number.
        ggml_type: u32,
    },
    /// A string that names no format.
    #[error("no weight format is called {name:?}; the formats are {}", Names)]
    UnknownName {
        /// The string.
        name: String,
    },
    /// A row that cannot be cut in whole blocks, or whose size in bytes overflows.
    #[error("{cols} columns do not fit format {format}, which stores blocks of {}", .format.block_len())]
    Columns {
        /// The format.
        format: Format,
        /// Columns of the row.
        cols: usize,
    },
    /// Bytes that do not hold the rows they should.
    #[error("{rows} rows of {cols} columns of {format} do not take {found} bytes; the file is damaged")]
    Length {
        /// The format.
        format: Format,
        /// Rows asked for.
        rows: usize,
        /// Columns of each row.
        cols: usize,
        /// Bytes given.
        found: usize,
    },
    /// Blocks asked of a float format.
    #[error("format {format} has no blocks; read its values as floats")]
    Dense {
        /// The format.
        format: Format,
    },
}

struct Layout {
    name: &'static str,
    ggml_type: u32,
    block_bytes: usize,
    kind: FormatKind,
}

impl Format {
    /// Every format.
    pub const ALL: [Format; 15] = [
        Format::F32,
        Format::F16,
        Format::BF16,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q8_0,
        Format::Q2K,
        Format::Q3K,
        Format::Q4K,
        Format::Q5K,
        Format::Q6K,
        Format::Iq4Nl,
        Format::Mxfp4,
    ];

    /// ggml's name, such as `Q4_K`.
    pub fn name(self) -> &'static str {
        self.layout().name
    }

    /// ggml's number, as GGUF files store it.
    pub fn ggml_type(self) -> u32 {
        self.layout().ggml_type
    }

    /// The format of a GGUF tensor.
    ///
    /// # Errors
    /// If the number is of a format that is not supported, which is named, or of none.
    pub fn from_ggml_type(ggml_type: u32) -> Result<Self, FormatError> {
        if let Some(format) = Self::ALL.into_iter().find(|format| format.ggml_type() == ggml_type) {
            return Ok(format);
        }
        Err(match unsupported_name(ggml_type) {
            Some(name) => FormatError::Unsupported { name, ggml_type },
            None => FormatError::UnknownType { ggml_type },
        })
    }

    /// The shape of the blocks.
    pub fn kind(self) -> FormatKind {
        self.layout().kind
    }

    /// Whether the values are stored in blocks of integers.
    pub fn is_quantized(self) -> bool {
        self.kind() != FormatKind::Dense
    }

    /// Columns in one block: 1, 32 or 256.
    pub fn block_len(self) -> usize {
        match self.kind() {
            FormatKind::Dense => 1,
            FormatKind::Blocks32 { .. } => 32,
            FormatKind::Blocks256 { .. } => 256,
        }
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        self.layout().block_bytes
    }

    /// Bytes of one row of `cols` columns.
    ///
    /// # Errors
    /// If the columns are not whole blocks, or their size overflows.
    pub fn row_bytes(self, cols: usize) -> Result<usize, FormatError> {
        let blocks = cols / self.block_len();
        blocks
            .checked_mul(self.block_bytes())
            .filter(|_| cols.is_multiple_of(self.block_len()))
            .ok_or(FormatError::Columns { format: self, cols })
    }

    /// Stored bits for each value, scales included.
    pub fn bits_per_weight(self) -> f64 {
        8.0 * self.block_bytes() as f64 / self.block_len() as f64
    }

    fn layout(self) -> Layout {
        let (plain, with_min) = (FormatKind::Blocks32 { min: false }, FormatKind::Blocks32 { min: true });
        let blocks256 = |sub_len, min| FormatKind::Blocks256 { sub_len, min };
        let (name, ggml_type, block_bytes, kind) = match self {
            Format::F32 => ("F32", 0, 4, FormatKind::Dense),
            Format::F16 => ("F16", 1, 2, FormatKind::Dense),
            Format::BF16 => ("BF16", 30, 2, FormatKind::Dense),
            Format::Q4_0 => ("Q4_0", 2, 18, plain),
            Format::Q4_1 => ("Q4_1", 3, 20, with_min),
            Format::Q5_0 => ("Q5_0", 6, 22, plain),
            Format::Q5_1 => ("Q5_1", 7, 24, with_min),
            Format::Q8_0 => ("Q8_0", 8, 34, plain),
            Format::Q2K => ("Q2_K", 10, 84, blocks256(16, true)),
            Format::Q3K => ("Q3_K", 11, 110, blocks256(16, false)),
            Format::Q4K => ("Q4_K", 12, 144, blocks256(32, true)),
            Format::Q5K => ("Q5_K", 13, 176, blocks256(32, true)),
            Format::Q6K => ("Q6_K", 14, 210, blocks256(16, false)),
            Format::Iq4Nl => ("IQ4_NL", 20, 18, plain),
            Format::Mxfp4 => ("MXFP4", 39, 17, plain),
        };
        Layout { name, ggml_type, block_bytes, kind }
    }
}

/// Names of the ggml types that no [`Format`] stands for (`ggml.h`, `enum ggml_type`).
fn unsupported_name(ggml_type: u32) -> Option<&'static str> {
    Some(match ggml_type {
        4 => "Q4_2",
        5 => "Q4_3",
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        31 => "Q4_0_4_4",
        32 => "Q4_0_4_8",
        33 => "Q4_0_8_8",
        34 => "TQ1_0",
        35 => "TQ2_0",
        36 => "IQ4_NL_4_4",
        37 => "IQ4_NL_4_8",
        38 => "IQ4_NL_8_8",
        40 => "NVFP4",
        41 => "Q1_0",
        _ => return None,
    })
}

/// Prints the names of all formats.
struct Names;

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, format) in Format::ALL.iter().enumerate() {
            write!(f, "{}{format}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Format {
    type Err = FormatError;

    /// Reads ggml's name, in either case.
    fn from_str(name: &str) -> Result<Self, FormatError> {
        Self::ALL
            .into_iter()
            .find(|format| format.name().eq_ignore_ascii_case(name))
            .ok_or_else(|| FormatError::UnknownName { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_round_trip() {
        for format in Format::ALL {
            assert_eq!(format.name().parse(), Ok(format));
            assert_eq!(format.name().to_lowercase().parse(), Ok(format));
            assert_eq!(Format::from_ggml_type(format.ggml_type()), Ok(format));
        }
    }

    #[test]
    fn unsupported_types_are_named_and_supported_ones_are_not_among_them() {
        for ggml_type in 0..64 {
            let supported = Format::ALL.iter().any(|format| format.ggml_type() == ggml_type);
            assert!(!(supported && unsupported_name(ggml_type).is_some()), "{ggml_type}");
        }
        let message = Format::from_ggml_type(17).unwrap_err().to_string();
        assert!(message.contains("IQ2_XS") && message.contains("Q4_K"), "{message}");
        assert_eq!(Format::from_ggml_type(999), Err(FormatError::UnknownType { ggml_type: 999 }));
    }

    #[test]
    fn rows_are_whole_blocks() {
        assert_eq!(Format::Q4K.row_bytes(512), Ok(288));
        assert_eq!(Format::F16.row_bytes(3), Ok(6));
        assert_eq!(Format::Q8_0.row_bytes(0), Ok(0));
        let error = FormatError::Columns { format: Format::Q4K, cols: 32 };
        assert_eq!(Format::Q4K.row_bytes(32), Err(error));
        assert!(Format::F32.row_bytes(usize::MAX).is_err());
        assert_eq!(Format::Q4_0.bits_per_weight(), 4.5);
        assert_eq!(Format::Q6K.bits_per_weight(), 6.5625);
    }
}
