use std::thread;

use bytemuck::bytes_of;
use samebits_tensor::{Format, FormatKind, HostWeight, PlainWeight, Result, Tensor};

use crate::{
    Buffer, Cuda,
    packing::{Parts, RowBytes, pack_rows, unpack_rows},
};

/// Fewer bytes than this are packed by one thread.
const BYTES_OF_THREAD: usize = 1 << 18;

/// A weight on the device: floats, or the integers and scales of its blocks in as many bits as its file has them.
#[derive(Clone)]
pub struct PackedWeight {
    pub(crate) held: Held,
}

#[derive(Clone)]
pub(crate) enum Held {
    Dense(Tensor<Cuda>),
    Blocks(Blocks),
}

/// A matrix in blocks.
#[derive(Clone)]
pub(crate) struct Blocks {
    format: Format,
    rows: usize,
    cols: usize,
    /// What [`Parts`] are; `None` where the format lacks one.
    parts: [Option<Buffer>; 5],
}

impl PackedWeight {
    pub(crate) fn pack(cuda: &Cuda, weight: &HostWeight) -> Result<Self> {
        if !weight.format.is_quantized() {
            let PlainWeight::Dense(dense) = PlainWeight::unpack(cuda, weight)? else {
                unreachable!("a float format")
            };
            return Ok(PackedWeight { held: Held::Dense(dense) });
        }
        Ok(PackedWeight { held: Held::Blocks(Blocks::pack(cuda, weight)?) })
    }

    /// Bytes on the device of `[rows, cols]`, whole blocks of a format.
    pub fn bytes(format: Format, rows: usize, cols: usize) -> u64 {
        if !format.is_quantized() {
            return (rows * cols * format.block_bytes()) as u64;
        }
        rows as u64 * RowBytes::of(format, cols).all().iter().sum::<usize>() as u64
    }

    /// The contract's view. Blocks are unpacked by the host.
    pub(crate) fn plain(&self, cuda: &Cuda) -> Result<PlainWeight<Cuda>> {
        match &self.held {
            Held::Dense(dense) => Ok(PlainWeight::Dense(dense.clone())),
            Held::Blocks(blocks) => blocks.plain(cuda),
        }
    }
}

impl Blocks {
    fn pack(cuda: &Cuda, weight: &HostWeight) -> Result<Self> {
        let (format, (rows, cols)) = (weight.format, weight.matrix()?);
        let row_bytes = RowBytes::of(format, cols).all();
        let mut parts = [const { None }; 5];
        for (part, &bytes) in parts.iter_mut().zip(&row_bytes) {
            if bytes > 0 {
                *part = Some(cuda.buffer("pack", rows * bytes)?);
            }
        }
        let mut done = 0;
        for packed in pack_in_threads(format, rows, cols, &weight.bytes) {
            for ((part, packed), bytes) in parts.iter().zip(packed).zip(row_bytes) {
                if let Some(part) = part {
                    cuda.write(&part.after((done * bytes) as u64), &packed)?;
                }
            }
            done += rows_of_thread(rows, weight.bytes.len());
        }
        Ok(Blocks { format, rows, cols, parts })
    }

    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// Rows and columns.
    pub(crate) fn dims(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// The parts as a kernel's arguments, 0 where there is none.
    pub(crate) fn arguments(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().map(|part| part.as_ref().map_or(bytes_of(&0u64), Buffer::argument))
    }

    fn plain(&self, cuda: &Cuda) -> Result<PlainWeight<Cuda>> {
        let &Blocks { format, rows, cols, .. } = self;
        let mut parts: Parts = RowBytes::of(format, cols).all().map(|bytes| vec![0; rows * bytes]);
        for (bytes, part) in parts.iter_mut().zip(&self.parts) {
            if let Some(part) = part {
                cuda.read(part, bytes)?;
            }
        }
        let plain = unpack_rows(format, cols, &parts);
        let blocks = [rows, cols / format.block_len()];
        let q = Tensor::of(cuda, [rows, cols], &plain.q)?;
        let scale = Tensor::of(cuda, blocks, &plain.scale)?;
        let min = plain.min.map(|min| Tensor::of(cuda, blocks, &min)).transpose()?;
        let FormatKind::Blocks256 { sub_len, .. } = format.kind() else {
            return Ok(PlainWeight::Blocks32 { q, scale, min });
        };
        let subs = [rows, cols / sub_len];
        let sub_scale = Tensor::of(cuda, subs, &plain.sub_scale.unwrap_or_default())?;
        let sub_min = plain.sub_min.map(|it| Tensor::of(cuda, subs, &it)).transpose()?;
        Ok(PlainWeight::Blocks256 { q, scale, sub_scale, min: min.zip(sub_min) })
    }
}

/// Packs consecutive rows on as many threads as there are. Each result is of
/// [`rows_of_thread`] rows, but the last.
fn pack_in_threads(format: Format, rows: usize, cols: usize, bytes: &[u8]) -> Vec<Parts> {
    let row_bytes = bytes.len().checked_div(rows).unwrap_or(0);
    let each = rows_of_thread(rows, bytes.len()) * row_bytes;
    thread::scope(|scope| {
        let chunks = bytes.chunks(each.max(1));
        let threads: Vec<_> =
            chunks.map(|chunk| scope.spawn(move || pack_rows(format, cols, chunk))).collect();
        threads.into_iter().map(|thread| thread.join().expect("packing does not panic")).collect()
    })
}

fn rows_of_thread(rows: usize, bytes: usize) -> usize {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    rows.div_ceil(threads.min(bytes / BYTES_OF_THREAD).max(1)).max(1)
}
