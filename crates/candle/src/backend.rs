use std::ops::Range;

use candle_core::{DType as CandleDType, Result as CandleResult, Tensor as CandleTensor};
use half::bf16;
use samebits_tensor::{
    Activation, AttentionBatch, AttentionParams, Backend, BinaryOp, Capabilities, CompareOp, DType, Error,
    HostTensor, HostWeight, KvCache, PlainWeight, Result, RopeTable, Scalar, Shape, Tensor, UnaryOp, Weight,
    decompose,
};

use crate::{
    Candle, Data, During, Numerics,
    data::{dims, held_as},
    elementwise::{map, zip},
    float,
};

impl Backend for Candle {
    type Data = Data;
    /// Under float numerics a weight is [`PlainWeight::Dense`] in f32, whatever its format was.
    type Weight = PlainWeight<Self>;

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn upload(&self, host: &HostTensor) -> Result<Data> {
        Data::upload(host, &self.device)
    }

    fn download(&self, x: &Tensor<Self>) -> Result<HostTensor> {
        x.data().download(x.shape(), x.dtype())
    }

    fn full(&self, shape: &Shape, value: Scalar) -> Result<Data> {
        Data::full(shape, value, &self.device)
    }

    fn iota(&self, shape: &Shape, axis: usize) -> Result<Data> {
        let dims = dims("iota", shape)?;
        let extent = i32::try_from(dims[axis]).map_err(|_| Error::shape("iota", format!("{shape}")))?;
        let mut line = vec![1; dims.len()];
        line[axis] = dims[axis];
        let indices = CandleTensor::from_vec((0..extent).collect::<Vec<_>>(), line, &self.device);
        indices.and_then(|indices| indices.broadcast_as(dims)).map(Data::new).during("iota")
    }

    fn reshape(&self, x: &Tensor<Self>, shape: &Shape) -> Result<Data> {
        let reshaped = reshape(x.data().tensor(), dims("reshape", shape)?);
        Ok(x.data().view(reshaped.during("reshape")?))
    }

    fn permute(&self, x: &Tensor<Self>, axes: &[usize], _: &Shape) -> Result<Data> {
        Ok(x.data().view(x.data().tensor().permute(axes).during("permute")?))
    }

    fn slice(&self, x: &Tensor<Self>, ranges: &[Range<usize>], shape: &Shape) -> Result<Data> {
        // A view of nothing may start past the end of an empty storage, where candle's copies then panic.
        if shape.elements() == 0 {
            let empty = CandleTensor::zeros(shape.to_vec(), held_as(x.dtype()), &self.device);
            return empty.map(Data::new).during("slice");
        }
        let narrow =
            |x: CandleTensor, (axis, range): (usize, &Range<usize>)| x.narrow(axis, range.start, range.len());
        let slice = ranges.iter().enumerate().try_fold(x.data().tensor().clone(), narrow);
        Ok(x.data().view(slice.during("slice")?))
    }

    fn broadcast(&self, x: &Tensor<Self>, shape: &Shape) -> Result<Data> {
        Ok(x.data().view(x.data().tensor().broadcast_as(shape.to_vec()).during("broadcast")?))
    }

    fn concat(&self, xs: &[&Tensor<Self>], axis: usize, _: &Shape) -> Result<Data> {
        if let [x] = xs {
            return Ok(x.data().clone());
        }
        let tensors: Vec<_> = xs.iter().map(|x| x.data().tensor()).collect();
        CandleTensor::cat(&tensors, axis).map(Data::new).during("concat")
    }

    fn cast(&self, x: &Tensor<Self>, dtype: DType) -> Result<Data> {
        if dtype == DType::Bool {
            let expected = "a comparison, where a mask is wanted";
            return Err(Error::DType { op: "cast", expected, found: x.dtype() });
        }
        Ok(x.data().view(cast(x.data().tensor(), x.dtype(), dtype).during("cast")?))
    }

    fn bitcast(&self, x: &Tensor<Self>, dtype: DType) -> Result<Data> {
        let x = x.data().tensor();
        let bits = match dtype {
            DType::F32 => map(x, |bits: i32| f32::from_bits(bits as u32)),
            _ => map(x, |value: f32| value.to_bits() as i32),
        };
        bits.map(Data::new).during("bitcast")
    }

    fn unary(&self, op: UnaryOp, x: &Tensor<Self>) -> Result<Data> {
        let tensor = x.data().tensor();
        let value = match op {
            UnaryOp::Neg if x.dtype() == DType::I32 => map(tensor, i32::wrapping_neg),
            UnaryOp::Neg => tensor.neg(),
            UnaryOp::Abs => tensor.abs(),
            UnaryOp::Sqrt => tensor.sqrt(),
            UnaryOp::RoundEven => map(tensor, f32::round_ties_even),
        };
        value.map(Data::new).during("unary")
    }

    fn binary(&self, op: BinaryOp, a: &Tensor<Self>, b: &Tensor<Self>) -> Result<Data> {
        let (dtype, a, b) = (a.dtype(), a.data().tensor(), b.data().tensor());
        let value = match dtype {
            DType::I32 => binary_i32(op, a, b),
            DType::Bool => binary_bool(op, a, b),
            _ => binary_f32(op, a, b),
        };
        value.map(Data::new).during("binary")
    }

    fn compare(&self, op: CompareOp, a: &Tensor<Self>, b: &Tensor<Self>) -> Result<Data> {
        let (a, b) = (a.data().tensor(), b.data().tensor());
        let holds = match op {
            CompareOp::Lt => a.lt(b),
            CompareOp::Le => a.le(b),
            CompareOp::Eq => a.eq(b),
        };
        holds.map(Data::new).during("compare")
    }

    fn select(&self, condition: &Tensor<Self>, a: &Tensor<Self>, b: &Tensor<Self>) -> Result<Data> {
        let selected = condition.data().tensor().where_cond(a.data().tensor(), b.data().tensor());
        selected.map(Data::new).during("select")
    }

    fn max_reduce(&self, x: &Tensor<Self>, shape: &Shape) -> Result<Data> {
        let largest = max_last(x.data().tensor(), shape);
        Ok(x.data().view(largest.during("max_reduce")?))
    }

    fn matmul_exact(&self, a: &Tensor<Self>, b: &Tensor<Self>) -> Result<Data> {
        let product = products(a.data().tensor(), b.data().tensor());
        product.and_then(|x| x.to_dtype(CandleDType::I32)).map(Data::new).during("matmul_exact")
    }

    fn gather(&self, x: &Tensor<Self>, indices: &Tensor<Self>) -> Result<Data> {
        let rows = checked_rows("gather", indices, x.dims()[0])?;
        select_rows(x.data().tensor(), &rows).map(Data::new).during("gather")
    }

    fn scatter(
        &self,
        x: &mut Data,
        x_shape: &Shape,
        indices: &Tensor<Self>,
        rows: &Tensor<Self>,
    ) -> Result<()> {
        let targets = checked_rows("scatter", indices, x_shape[0])?;
        if rows.shape().elements() == 0 {
            return Ok(());
        }
        write_rows(x, &targets, rows.data().tensor()).during("scatter")
    }

    fn pack(&self, weight: &HostWeight) -> Result<PlainWeight<Self>> {
        match self.numerics {
            Numerics::Exact => PlainWeight::unpack(self, weight),
            Numerics::Float => float::dequantize(self, weight),
        }
    }

    fn plain(&self, weight: &Weight<Self>) -> Result<PlainWeight<Self>> {
        Ok(weight.packed().clone())
    }

    fn linear(&self, x: &Tensor<Self>, weight: &Weight<Self>) -> Result<Tensor<Self>> {
        match (self.numerics, weight.packed()) {
            (Numerics::Float, PlainWeight::Dense(weight)) => float::linear(x, weight),
            (_, weight) => decompose::linear(x, weight),
        }
    }

    fn rms_norm(&self, x: &Tensor<Self>, weight: &Tensor<Self>, eps: f32) -> Result<Tensor<Self>> {
        match self.numerics {
            Numerics::Exact => decompose::rms_norm(x, weight, eps),
            Numerics::Float => float::rms_norm(x, weight, eps),
        }
    }

    fn layer_norm(
        &self,
        x: &Tensor<Self>,
        weight: &Tensor<Self>,
        bias: &Tensor<Self>,
        eps: f32,
    ) -> Result<Tensor<Self>> {
        match self.numerics {
            Numerics::Exact => decompose::layer_norm(x, weight, bias, eps),
            Numerics::Float => float::layer_norm(x, weight, bias, eps),
        }
    }

    fn rope(
        &self,
        x: &Tensor<Self>,
        positions: &Tensor<Self>,
        table: &RopeTable<Self>,
    ) -> Result<Tensor<Self>> {
        match self.numerics {
            Numerics::Exact => decompose::rope(x, positions, table),
            Numerics::Float => float::rope(x, positions, table),
        }
    }

    fn store_kv(
        &self,
        cache: &mut KvCache<Self>,
        k: &Tensor<Self>,
        v: &Tensor<Self>,
        slots: &Tensor<Self>,
    ) -> Result<()> {
        match self.numerics {
            Numerics::Exact => decompose::store_kv(cache, k, v, slots),
            Numerics::Float => float::store_kv(cache, k, v, slots),
        }
    }

    fn attention(
        &self,
        q: &Tensor<Self>,
        cache: &KvCache<Self>,
        batch: &AttentionBatch<Self>,
        params: &AttentionParams,
    ) -> Result<Tensor<Self>> {
        match self.numerics {
            Numerics::Exact => decompose::attention(q, cache, batch, params),
            Numerics::Float => float::attention(q, cache, batch, params),
        }
    }

    fn glu(&self, gate: &Tensor<Self>, up: &Tensor<Self>, activation: Activation) -> Result<Tensor<Self>> {
        match self.numerics {
            Numerics::Exact => decompose::glu(gate, up, activation),
            Numerics::Float => float::activate(gate, activation)?.mul(up),
        }
    }

    fn activate(&self, x: &Tensor<Self>, activation: Activation) -> Result<Tensor<Self>> {
        match self.numerics {
            Numerics::Exact => decompose::activate(x, activation),
            Numerics::Float => float::activate(x, activation),
        }
    }

    fn softmax(&self, x: &Tensor<Self>) -> Result<Tensor<Self>> {
        match self.numerics {
            Numerics::Exact => decompose::softmax(x),
            Numerics::Float => float::softmax(x),
        }
    }

    fn soft_cap(&self, x: &Tensor<Self>, cap: f32) -> Result<Tensor<Self>> {
        match self.numerics {
            Numerics::Exact => decompose::soft_cap(x, cap),
            Numerics::Float => float::soft_cap(x, cap),
        }
    }
}

/// Rows of `x` at indices that have been checked.
pub(crate) fn select_rows(x: &CandleTensor, rows: &[u32]) -> CandleResult<CandleTensor> {
    let rows = CandleTensor::from_slice(rows, rows.len(), x.device())?;
    x.contiguous()?.index_select(&rows, 0)
}

/// Indices `[m]` on the host, each inside `0..len`. candle takes u32, of which the largest means "no row".
pub(crate) fn checked_rows(op: &'static str, indices: &Tensor<Candle>, len: usize) -> Result<Vec<u32>> {
    let row = |index: i32| match u32::try_from(index) {
        Ok(row) if (row as usize) < len => Ok(row),
        _ => Err(Error::Index { op, index: index.into(), len }),
    };
    indices.data().tensor().to_vec1::<i32>().during(op)?.into_iter().map(row).collect()
}

fn write_rows(x: &mut Data, targets: &[u32], rows: &CandleTensor) -> CandleResult<()> {
    let width = rows.elem_count() / targets.len();
    let x = x.writable()?;
    let x = x.reshape((x.elem_count() / width, width))?;
    let targets = CandleTensor::from_slice(targets, (targets.len(), 1), x.device())?;
    let rows = rows.reshape((targets.dim(0)?, width))?;
    x.scatter_set(&targets.broadcast_as(rows.shape())?.contiguous()?, &rows, 0)
}

/// candle copies a strided tensor to reshape it; taking an axis of extent 1 out or in needs no copy.
fn reshape(x: &CandleTensor, dims: Vec<usize>) -> CandleResult<CandleTensor> {
    let unit_axis = |long: &[usize], short: &[usize]| {
        (0..long.len()).find(|&axis| {
            long.len() == short.len() + 1
                && long[axis] == 1
                && long[..axis] == short[..axis]
                && long[axis + 1..] == short[axis..]
        })
    };
    if let Some(axis) = unit_axis(x.dims(), &dims) {
        x.squeeze(axis)
    } else if let Some(axis) = unit_axis(&dims, x.dims()) {
        x.unsqueeze(axis)
    } else {
        x.reshape(dims)
    }
}

fn cast(x: &CandleTensor, from: DType, to: DType) -> CandleResult<CandleTensor> {
    match (from, to) {
        (DType::F32, DType::I8) => map(x, |value: f32| f32::from(value as i8)),
        (DType::F32, DType::U8) => map(x, |value: f32| f32::from(value as u8)),
        (DType::I32, DType::I8) => map(x, |value: i32| f32::from(value as i8)),
        (DType::I32, DType::U8) => map(x, |value: i32| f32::from(value as u8)),
        (DType::U8, DType::I8) => map(x, |value: f32| f32::from(value as u8 as i8)),
        (DType::I8, DType::U8) => map(x, |value: f32| f32::from(value as i8 as u8)),
        (DType::F16 | DType::BF16, DType::I8 | DType::U8) => {
            cast(&x.to_dtype(CandleDType::F32)?, DType::F32, to)
        }
        (DType::I32, DType::BF16) => map(x, bf16_of),
        _ => x.to_dtype(held_as(to)),
    }
}

/// Rounded once, where candle goes through f32 and rounds twice: the low byte of a value that f32 cannot hold
/// becomes one bit, which f32 holds and which tells bfloat16 that the value is no tie.
fn bf16_of(value: i32) -> bf16 {
    let fits = value.unsigned_abs() >> 24 == 0;
    let sticky = i32::from(value & 0xff != 0) << 8;
    bf16::from_f32(if fits { value } else { value & !0xff | sticky } as f32)
}

fn binary_f32(op: BinaryOp, a: &CandleTensor, b: &CandleTensor) -> CandleResult<CandleTensor> {
    match op {
        BinaryOp::Add => a.add(b),
        BinaryOp::Sub => a.sub(b),
        BinaryOp::Mul => a.mul(b),
        BinaryOp::Div => a.div(b),
        // `maximum` keeps a NaN on the left and loses one on the right.
        BinaryOp::Max => b.ne(b)?.where_cond(b, &a.maximum(b)?),
        BinaryOp::And | BinaryOp::Or | BinaryOp::Shl | BinaryOp::Shr => no_such(op, a),
    }
}

fn binary_i32(op: BinaryOp, a: &CandleTensor, b: &CandleTensor) -> CandleResult<CandleTensor> {
    match op {
        BinaryOp::Add => zip(a, b, i32::wrapping_add),
        BinaryOp::Sub => zip(a, b, i32::wrapping_sub),
        BinaryOp::Mul => zip(a, b, i32::wrapping_mul),
        BinaryOp::Max => a.maximum(b),
        BinaryOp::And => zip(a, b, |a: i32, b: i32| a & b),
        BinaryOp::Or => zip(a, b, |a: i32, b: i32| a | b),
        BinaryOp::Shl => zip(a, b, |a: i32, b: i32| a.wrapping_shl(b as u32)),
        BinaryOp::Shr => zip(a, b, |a: i32, b: i32| a.wrapping_shr(b as u32)),
        BinaryOp::Div => no_such(op, a),
    }
}

fn binary_bool(op: BinaryOp, a: &CandleTensor, b: &CandleTensor) -> CandleResult<CandleTensor> {
    match op {
        BinaryOp::And => a.minimum(b),
        BinaryOp::Or => a.maximum(b),
        _ => no_such(op, a),
    }
}

fn no_such(op: BinaryOp, x: &CandleTensor) -> CandleResult<CandleTensor> {
    candle_core::bail!("{op:?} of {:?}", x.dtype())
}

/// candle's maximum, with NaN put back where a row has one that is not its first element.
fn max_last(x: &CandleTensor, shape: &Shape) -> CandleResult<CandleTensor> {
    let axis = shape.rank();
    if x.dims()[axis] == 1 {
        return x.squeeze(axis);
    }
    if x.elem_count() == 0 {
        return CandleTensor::zeros(shape.to_vec(), x.dtype(), x.device());
    }
    let largest = x.max(axis)?;
    if x.dtype() != CandleDType::F32 {
        return Ok(largest);
    }
    let nan = CandleTensor::full(f32::NAN, shape.to_vec(), x.device())?;
    x.ne(x)?.max(axis)?.where_cond(&nan, &largest)
}

/// `a [batch, m, k]` times the transpose of `b [batch, n, k]`, as a view `[batch, m, n]`.
///
/// Of products of integers every order is exact, so the fastest way is taken. The gemm that candle calls wants the
/// longer operand on the left and at least eight rows on the right, where it is four to seven times as fast as
/// its vector path on a matrix of 50,000 rows; for a handful of products its start costs more than the work.
fn products(a: &CandleTensor, b: &CandleTensor) -> CandleResult<CandleTensor> {
    const ROWS: usize = 8;
    const WORTH_GEMM: usize = 64;
    let (a, b) = (unrepeated(a)?, unrepeated(b)?);
    let (m, n) = (a.dim(1)?, b.dim(1)?);
    let (long, short, rows) = if m < n { (&b, &a, m) } else { (&a, &b, n) };
    let product = if a.dim(0)? * m * n == 1 {
        long.mul(short)?.sum_keepdim(2)?
    } else if rows < ROWS && m.max(n) >= WORTH_GEMM {
        long.matmul(&short.pad_with_zeros(1, 0, ROWS - rows)?.t()?)?.narrow(2, 0, rows)?
    } else {
        long.matmul(&short.t()?)?
    };
    if m < n { product.t() } else { Ok(product) }
}

/// A matrix product operand without repeated elements: candle stacks batches whose right operand has a batch
/// stride of zero, and then takes the rows of the left one to be contiguous.
fn unrepeated(x: &CandleTensor) -> CandleResult<CandleTensor> {
    let repeats = x.stride().iter().zip(x.dims()).any(|(&stride, &extent)| stride == 0 && extent > 1);
    if repeats { x.contiguous() } else { Ok(x.clone()) }
}
