//! Decoding of weight blocks, against values made by gguf-py and against its own statement.

use proptest::prelude::*;
use samebits_tensor::{
    Format, FormatError, FormatKind, PlainRowMut, PlainRows,
    contract::TINY,
    dequantize_row,
    testing::{extreme_blocks, random_blocks},
    unpack_row, unpack_rows,
};

/// See `fixtures/make_block_goldens.py`.
const GOLDENS: &[u8] = include_bytes!("fixtures/blocks.bin");

fn take<'a>(bytes: &mut &'a [u8], len: usize) -> &'a [u8] {
    let (head, tail) = bytes.split_at(len);
    *bytes = tail;
    head
}

fn take_u32(bytes: &mut &[u8]) -> u32 {
    u32::from_le_bytes(take(bytes, 4).try_into().expect("four bytes"))
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn values_are_those_of_gguf() {
    let mut rest = GOLDENS;
    let mut seen = Vec::new();
    while !rest.is_empty() {
        let format = Format::from_ggml_type(take_u32(&mut rest)).expect("a supported format");
        let blocks = take_u32(&mut rest) as usize;
        let bytes = take(&mut rest, blocks * format.block_bytes());
        let expected: Vec<u32> = (0..blocks * format.block_len()).map(|_| take_u32(&mut rest)).collect();
        let mut values = vec![f32::NAN; expected.len()];
        dequantize_row(format, bytes, &mut values);
        for (i, (value, expected)) in bits(&values).into_iter().zip(expected).enumerate() {
            assert_eq!(value, expected, "{format}, value {i}: {:e}", f32::from_bits(value));
        }
        seen.push(format);
    }
    seen.sort();
    assert_eq!(seen, Format::ALL, "a format has no goldens");
}

/// The statement of [`PlainRows`] in code.
fn recombine(format: Format, cols: usize, plain: &PlainRows) -> Vec<f32> {
    let value = |(i, &q): (usize, &i8)| {
        // Rows are whole blocks, so one index runs through all of them.
        let block = i / format.block_len();
        let product = match format.kind() {
            FormatKind::Blocks256 { sub_len, .. } => {
                let sub_scale = plain.sub_scale.as_ref().expect("sub-scales")[i / sub_len];
                (plain.scale[block] * f32::from(sub_scale)) * f32::from(q)
            }
            _ => plain.scale[block] * f32::from(q),
        };
        match (format.kind(), &plain.min, &plain.sub_min) {
            (FormatKind::Blocks32 { min: true }, Some(min), None) => product + min[block],
            (FormatKind::Blocks256 { sub_len, min: true }, Some(min), Some(sub_min)) => {
                product - min[block] * f32::from(sub_min[i / sub_len])
            }
            (_, None, None) => product,
            _ => panic!("{format}: parts do not fit the kind"),
        }
    };
    assert_eq!(plain.q.len() % cols, 0);
    plain.q.iter().enumerate().map(value).collect()
}

fn dequantize(format: Format, cols: usize, bytes: &[u8]) -> Vec<f32> {
    let row_bytes = format.row_bytes(cols).expect("whole blocks");
    let mut values = vec![f32::NAN; bytes.len() / row_bytes * cols];
    for (row, out) in bytes.chunks_exact(row_bytes).zip(values.chunks_exact_mut(cols)) {
        dequantize_row(format, row, out);
    }
    values
}

fn quantized() -> impl Strategy<Value = Format> {
    prop::sample::select(Format::ALL.into_iter().filter(|f| f.is_quantized()).collect::<Vec<_>>())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn parts_recombine_to_the_values(
        format in quantized(), rows in 1..4usize, blocks in 1..4usize, seed: u64, extreme: bool,
    ) {
        let cols = blocks * format.block_len();
        let bytes = match extreme {
            true => extreme_blocks(format, rows, cols),
            false => random_blocks(format, rows, cols, seed),
        };
        let plain = unpack_rows(format, rows, cols, &bytes).expect("a valid matrix");
        let values = dequantize(format, cols, &bytes);
        prop_assert!(values.iter().all(|value| value.is_finite()));
        prop_assert_eq!(bits(&recombine(format, cols, &plain)), bits(&values));
    }

    /// Any bytes decode, and to integers that the dot products of the contract can hold.
    #[test]
    fn any_bytes_decode(format in quantized(), bytes in prop::collection::vec(any::<u8>(), 210)) {
        let bytes = &bytes[..format.block_bytes()];
        let plain = unpack_rows(format, 1, format.block_len(), bytes).expect("one block");
        for scale in plain.scale.iter().chain(plain.min.iter().flatten()) {
            prop_assert!(scale.to_bits() == 0 || scale.is_nan() || scale.abs() >= TINY, "{:e}", scale);
        }
        if let Some(sub_scale) = &plain.sub_scale {
            let sub_len = plain.q.len() / sub_scale.len();
            let largest: i64 = plain.q.iter().enumerate()
                .map(|(i, &q)| 127 * i64::from(q).abs() * i64::from(sub_scale[i / sub_len]).abs())
                .sum();
            prop_assert!(largest < 1 << 31);
        }
    }
}

#[test]
fn one_row_decodes_as_it_does_among_others() {
    let (format, rows, cols) = (Format::Q4K, 3, 512);
    let bytes = random_blocks(format, rows, cols, 7);
    let all = unpack_rows(format, rows, cols, &bytes).unwrap();
    let mut one = PlainRows { q: vec![0; cols], scale: vec![0.0; 2], ..PlainRows::default() };
    let (mut min, mut sub_scale, mut sub_min) = ([0.0; 2], [0; 16], [0; 16]);
    let mut row = PlainRowMut {
        q: &mut one.q,
        scale: &mut one.scale,
        min: &mut min,
        sub_scale: &mut sub_scale,
        sub_min: &mut sub_min,
    };
    unpack_row(format, &bytes[288..576], &mut row);
    assert_eq!(one.q, all.q[cols..2 * cols]);
    assert_eq!(one.scale, all.scale[2..4]);
    assert_eq!(min, all.min.unwrap()[2..4]);
    assert_eq!(sub_scale, all.sub_scale.unwrap()[16..32]);
    assert_eq!(sub_min, all.sub_min.unwrap()[16..32]);
}

#[test]
fn scales_below_the_bound_are_positive_zero() {
    let mut block = [0xff; 17];
    for (exponent, scale) in [(0, 0.0), (1, 0.0), (79, 0.0), (80, TINY), (128, 1.0), (255, 2f32.powi(127))] {
        block[0] = exponent;
        let plain = unpack_rows(Format::Mxfp4, 1, 32, &block).unwrap();
        assert_eq!(plain.scale[0].to_bits(), f32::to_bits(scale), "exponent {exponent}");
    }
    let mut block = [0; 18];
    block[1] = 0x80;
    assert_eq!(unpack_rows(Format::Q4_0, 1, 32, &block).unwrap().scale[0].to_bits(), 0, "minus zero");
}

#[test]
fn bytes_that_do_not_fit_are_errors() {
    let error = |format, rows, cols, len| unpack_rows(format, rows, cols, &vec![0; len]).unwrap_err();
    assert_eq!(error(Format::F16, 1, 32, 64), FormatError::Dense { format: Format::F16 });
    let columns = FormatError::Columns { format: Format::Q6K, cols: 128 };
    assert_eq!(error(Format::Q6K, 1, 128, 105), columns);
    let length = FormatError::Length { format: Format::Q8_0, rows: 2, cols: 32, found: 67 };
    assert_eq!(error(Format::Q8_0, 2, 32, 67), length);
    assert!(matches!(error(Format::Q8_0, usize::MAX, 64, 68), FormatError::Length { .. }));
    assert_eq!(unpack_rows(Format::Q4_1, 5, 0, &[]).unwrap().q.len(), 0);
}

#[test]
fn blocks_for_tests_depend_on_the_seed_alone() {
    for format in Format::ALL {
        let bytes = random_blocks(format, 2, 256, 1);
        assert_eq!(bytes.len(), 2 * format.row_bytes(256).unwrap());
        assert_eq!(bytes, random_blocks(format, 2, 256, 1));
        assert_ne!(bytes, random_blocks(format, 2, 256, 2));
        let values = dequantize(format, 256, &extreme_blocks(format, 24, 256));
        assert!(values.iter().all(|value| value.is_finite()), "{format}");
        assert!(values.iter().any(|value| *value != 0.0), "{format}");
    }
}
