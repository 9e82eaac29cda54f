//! The suite finds the mistakes that backends make, and reports them by name.

use std::ops::Range;

use samebits_conformance::{Case, Group, Skip, Subject, check_group};
use samebits_cpu::{Buffer, Host};
use samebits_tensor::{
    AttentionBatch, AttentionParams, Backend, BinaryOp, Capabilities, CompareOp, DType, Error, Experts,
    Format, HostTensor, HostWeight, Input, KvCache, PlainWeight, Result, Routes, Routing, Scalar, Shape,
    Tensor, UnaryOp, Weight, decompose,
};

/// The reference with one mistake.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Faulty {
    RoundsHalvesAway,
    MaxIgnoresNan,
    CastsWrap,
    NegatesBySubtraction,
    MatmulSaturatesI16,
    SumsInOrder,
    QuantisesWithoutFloor,
    ContractsProducts,
    LinearRowsDependOnTheBatch,
    TiesGoToTheLast,
    ExpertsAddByNumber,
    ExpertsKeepTinyWeights,
    AttentionSeesOneKeyMore,
    AttentionTilesFollowTheWindow,
}

#[test]
fn every_mistake_is_found() {
    let expected = [
        (Faulty::RoundsHalvesAway, Group::Unary),
        (Faulty::RoundsHalvesAway, Group::LinearBlocks32),
        (Faulty::MaxIgnoresNan, Group::MaxReduce),
        (Faulty::CastsWrap, Group::Cast),
        (Faulty::NegatesBySubtraction, Group::Unary),
        (Faulty::MatmulSaturatesI16, Group::MatmulExact),
        (Faulty::MatmulSaturatesI16, Group::LinearBlocks256),
        (Faulty::SumsInOrder, Group::RmsNorm),
        (Faulty::QuantisesWithoutFloor, Group::LinearBlocks32),
        (Faulty::ContractsProducts, Group::LinearDense),
        (Faulty::ContractsProducts, Group::Rope),
        (Faulty::LinearRowsDependOnTheBatch, Group::BatchInvariance),
        (Faulty::TiesGoToTheLast, Group::Route),
        (Faulty::ExpertsAddByNumber, Group::Experts),
        (Faulty::ExpertsKeepTinyWeights, Group::Experts),
        (Faulty::AttentionSeesOneKeyMore, Group::Attention),
        (Faulty::AttentionSeesOneKeyMore, Group::PaddingInvariance),
        (Faulty::AttentionTilesFollowTheWindow, Group::Attention),
    ];
    for (fault, group) in expected {
        let report = check_group(&fault, group, &[]);
        assert!(!report.failures.is_empty(), "{fault:?} passed {report}");
        assert!(report.failures.len() < report.cases || fault == Faulty::SumsInOrder, "{report}");
    }
}

/// Answers every case like the reference, but for the one that it is told to spoil.
struct Spoiled {
    case: &'static str,
    how: Spoiler,
}

type Spoiler = fn(Vec<HostTensor>) -> Result<Vec<HostTensor>>;

impl Subject for Spoiled {
    fn name(&self) -> String {
        "spoiled".into()
    }
    fn takes(&self, format: Format) -> bool {
        format != Format::Q6K
    }
    fn run(&self, case: &Case) -> Result<Vec<HostTensor>> {
        let results = case.run(&Host)?;
        if case.name == self.case { (self.how)(results) } else { Ok(results) }
    }
}

#[test]
fn a_report_names_the_case_the_element_and_the_bits() {
    let last_bit = |results: Vec<HostTensor>| {
        let mut values: Vec<f32> = results[0].to_vec()?;
        values[14] = f32::from_bits(values[14].to_bits() ^ 1);
        Ok(vec![HostTensor::of(results[0].shape(), &values)?])
    };
    let report = check_group(&Spoiled { case: "softmax/m=17,n=2/x1e0", how: last_bit }, Group::Softmax, &[]);
    assert_eq!(report.failures.len(), 1);
    let text = report.to_string();
    assert!(text.contains("SAMEBITS_CASE='softmax/m=17,n=2/x1e0'"), "{text}");
    assert!(text.contains("1 of 34 differ, first at [7, 0]: expected 0x"), "{text}");
}

#[test]
fn errors_panics_and_wrong_shapes_are_failures() {
    let hows: [(Spoiler, &str); 3] = [
        (|_| Err(Error::shape("iota", "out of memory")), "out of memory"),
        (|_| panic!("index out of bounds"), "panicked: index out of bounds"),
        (|_| Ok(vec![]), "expected [i32 [7]], found []"),
    ];
    for (how, detail) in hows {
        let report = check_group(&Spoiled { case: "iota/[7]/axis=0", how }, Group::Iota, &[]);
        assert_eq!(report.failures.len(), 1);
        assert!(report.to_string().contains(detail), "{report}");
    }
}

#[test]
fn what_is_skipped_is_reported_with_its_reason() {
    let skips = [Skip { pattern: "embedding/BF16", reason: "no bf16 on this device" }];
    let subject = Spoiled { case: "", how: Ok };
    let report = check_group(&subject, Group::Embedding, &skips);
    let all = Group::Embedding.checks().len();
    assert_eq!((report.cases, report.skipped.len()), (all - 8, 8));
    let text = report.to_string();
    assert!(text.contains("4 skipped: no bf16 on this device"), "{text}");
    assert!(text.contains("4 skipped: the subject does not take the format Q6_K"), "{text}");
}

/// The same tensor for the reference.
fn host(x: &Tensor<Faulty>) -> Tensor<Host> {
    Tensor::from_data(&Host, x.shape(), x.dtype(), x.data().clone())
}

impl Faulty {
    fn wrap(self, x: Tensor<Host>) -> Tensor<Self> {
        Tensor::from_data(&self, x.shape(), x.dtype(), x.data().clone())
    }

    fn map(self, x: &Tensor<Self>, f: impl Fn(f32) -> f32) -> Result<Buffer> {
        Ok(x.data().f32("fault")?.iter().map(|&x| f(x)).collect::<Vec<_>>().into())
    }

    fn blocks_without_floor(self, x: &Tensor<Self>) -> Result<Tensor<Self>> {
        let scale = 2f32.powi(40);
        let values: Vec<f32> = x.to_vec::<f32>()?.into_iter().map(|x| x * scale).collect();
        Tensor::of(&self, x.shape(), &values)
    }
}

impl Backend for Faulty {
    type Data = Buffer;
    type Weight = PlainWeight<Self>;

    fn capabilities(&self) -> &Capabilities {
        Host.capabilities()
    }
    fn upload(&self, x: &HostTensor) -> Result<Buffer> {
        Host.upload(x)
    }
    fn download(&self, x: &Tensor<Self>) -> Result<HostTensor> {
        Host.download(&host(x))
    }
    fn full(&self, shape: &Shape, value: Scalar) -> Result<Buffer> {
        Host.full(shape, value)
    }
    fn iota(&self, shape: &Shape, axis: usize) -> Result<Buffer> {
        Host.iota(shape, axis)
    }
    fn reshape(&self, x: &Tensor<Self>, shape: &Shape) -> Result<Buffer> {
        Host.reshape(&host(x), shape)
    }
    fn permute(&self, x: &Tensor<Self>, axes: &[usize], shape: &Shape) -> Result<Buffer> {
        Host.permute(&host(x), axes, shape)
    }
    fn slice(&self, x: &Tensor<Self>, ranges: &[Range<usize>], shape: &Shape) -> Result<Buffer> {
        Host.slice(&host(x), ranges, shape)
    }
    fn broadcast(&self, x: &Tensor<Self>, shape: &Shape) -> Result<Buffer> {
        Host.broadcast(&host(x), shape)
    }
    fn concat(&self, xs: &[&Tensor<Self>], axis: usize, shape: &Shape) -> Result<Buffer> {
        let xs: Vec<_> = xs.iter().map(|x| host(x)).collect();
        Host.concat(&xs.iter().collect::<Vec<_>>(), axis, shape)
    }
    fn cast(&self, x: &Tensor<Self>, dtype: DType) -> Result<Buffer> {
        if *self == Faulty::CastsWrap && (x.dtype(), dtype) == (DType::F32, DType::I8) {
            let values = x.data().f32("cast")?.iter().map(|&x| x as i32 as i8);
            return Ok(values.collect::<Vec<_>>().into());
        }
        Host.cast(&host(x), dtype)
    }
    fn bitcast(&self, x: &Tensor<Self>, dtype: DType) -> Result<Buffer> {
        Host.bitcast(&host(x), dtype)
    }
    fn unary(&self, op: UnaryOp, x: &Tensor<Self>) -> Result<Buffer> {
        match (self, op, x.dtype()) {
            (Faulty::RoundsHalvesAway, UnaryOp::RoundEven, _) => self.map(x, f32::round),
            (Faulty::NegatesBySubtraction, UnaryOp::Neg, DType::F32) => self.map(x, |x| 0.0 - x),
            _ => Host.unary(op, &host(x)),
        }
    }
    fn binary(&self, op: BinaryOp, a: &Tensor<Self>, b: &Tensor<Self>) -> Result<Buffer> {
        Host.binary(op, &host(a), &host(b))
    }
    fn compare(&self, op: CompareOp, a: &Tensor<Self>, b: &Tensor<Self>) -> Result<Buffer> {
        Host.compare(op, &host(a), &host(b))
    }
    fn select(&self, condition: &Tensor<Self>, a: &Tensor<Self>, b: &Tensor<Self>) -> Result<Buffer> {
        Host.select(&host(condition), &host(a), &host(b))
    }
    fn max_reduce(&self, x: &Tensor<Self>, shape: &Shape) -> Result<Buffer> {
        if *self == Faulty::MaxIgnoresNan && x.dtype() == DType::F32 {
            let rows = x.data().f32("max")?.chunks_exact(x.dims()[x.dims().len() - 1]);
            return Ok(rows
                .map(|row| row.iter().copied().fold(f32::NAN, f32::max))
                .collect::<Vec<_>>()
                .into());
        }
        Host.max_reduce(&host(x), shape)
    }
    fn matmul_exact(&self, a: &Tensor<Self>, b: &Tensor<Self>) -> Result<Buffer> {
        let product = Host.matmul_exact(&host(a), &host(b))?;
        if *self != Faulty::MatmulSaturatesI16 {
            return Ok(product);
        }
        let saturated = product.i32("matmul")?.iter().map(|&x| i32::from(x.clamp(-32768, 32767) as i16));
        Ok(saturated.collect::<Vec<_>>().into())
    }
    fn gather(&self, x: &Tensor<Self>, indices: &Tensor<Self>) -> Result<Buffer> {
        Host.gather(&host(x), &host(indices))
    }
    fn scatter(&self, x: &mut Buffer, shape: &Shape, at: &Tensor<Self>, rows: &Tensor<Self>) -> Result<()> {
        Host.scatter(x, shape, &host(at), &host(rows))
    }
    fn pack(&self, weight: &HostWeight) -> Result<PlainWeight<Self>> {
        PlainWeight::unpack(self, weight)
    }
    fn plain(&self, weight: &Weight<Self>) -> Result<PlainWeight<Self>> {
        Ok(weight.packed().clone())
    }

    fn linear(&self, x: &Tensor<Self>, weight: &Weight<Self>) -> Result<Tensor<Self>> {
        match (self, weight.packed()) {
            (Faulty::LinearRowsDependOnTheBatch, plain) if x.dims()[0] > 16 => {
                let halved: Vec<f32> = x.to_vec::<f32>()?.into_iter().map(|x| x * 3.0).collect();
                let y = decompose::linear(&Tensor::of(self, x.shape(), &halved)?, plain)?;
                y.mul(&y.filled(1.0 / 3.0)?)
            }
            (Faulty::QuantisesWithoutFloor, plain) if weight.format().is_quantized() => {
                let y = decompose::linear(&self.blocks_without_floor(x)?, plain)?;
                y.mul(&y.filled(2f32.powi(-40))?)
            }
            (Faulty::ContractsProducts, PlainWeight::Dense(w)) => {
                let (m, n, k) = (x.dims()[0], weight.rows(), weight.cols());
                let (x, w) = (x.cast(w.dtype())?.cast(DType::F32)?, w.cast(DType::F32)?);
                let (x, w) = (x.to_vec::<f32>()?, w.to_vec::<f32>()?);
                let dot =
                    |i: usize| (0..k).fold(0.0f32, |sum, c| x[i / n * k + c].mul_add(w[i % n * k + c], sum));
                Tensor::of(self, [m, n], &(0..m * n).map(dot).collect::<Vec<_>>())
            }
            (_, plain) => decompose::linear(x, plain),
        }
    }
    fn route(&self, logits: &Tensor<Self>, routing: Routing) -> Result<Routes<Self>> {
        let mut routes = decompose::route(logits, routing)?;
        if *self == Faulty::TiesGoToTheLast {
            let n = logits.dims()[1];
            let (logits, mut ids) = (logits.to_vec::<f32>()?, routes.experts.to_vec::<i32>()?);
            for (row, ids) in logits.chunks_exact(n).zip(ids.chunks_exact_mut(routing.top_k)) {
                let last = ids[0] as usize;
                let equal = (0..n).rev().find(|&other| row[other] == row[last]);
                ids[0] = equal.map_or(ids[0], |equal| equal as i32);
            }
            routes.experts = Tensor::of(self, routes.experts.shape(), &ids)?;
        }
        Ok(routes)
    }
    fn experts(
        &self,
        x: Input<'_, Self>,
        layer: Experts<'_, Self>,
        routes: &Routes<Self>,
    ) -> Result<Tensor<Self>> {
        let (shape, top_k) = (routes.experts.shape(), routes.experts.dims()[1]);
        let (ids, weights) = (routes.experts.to_vec::<i32>()?, routes.weights.to_vec::<f32>()?);
        let mut choices: Vec<(i32, f32)> = ids.into_iter().zip(weights).collect();
        match self {
            Faulty::ExpertsAddByNumber => choices.chunks_mut(top_k).for_each(|choices| {
                choices.sort_by_key(|choice| choice.0);
            }),
            Faulty::ExpertsKeepTinyWeights => {
                choices.iter_mut().for_each(|choice| choice.1 = choice.1.max(1e-14))
            }
            _ => {}
        }
        let (ids, weights): (Vec<_>, Vec<_>) = choices.into_iter().unzip();
        let routes =
            Routes { experts: Tensor::of(self, shape, &ids)?, weights: Tensor::of(self, shape, &weights)? };
        decompose::experts(x, layer, &routes)
    }
    fn rms_norm(&self, x: &Tensor<Self>, weight: &Tensor<Self>, eps: f32) -> Result<Tensor<Self>> {
        if *self != Faulty::SumsInOrder {
            return decompose::rms_norm(x, weight, eps);
        }
        let n = x.dims()[1];
        let (values, weight) = (x.to_vec::<f32>()?, weight.to_vec::<f32>()?);
        let rows = values.chunks_exact(n).flat_map(|row| {
            let sum = row.iter().fold(0.0f32, |sum, x| sum + x * x);
            let r = 1.0 / (sum * (1.0 / n as f32) + eps).sqrt();
            row.iter().zip(&weight).map(move |(x, w)| (x * r) * w)
        });
        Tensor::of(self, x.shape(), &rows.collect::<Vec<f32>>())
    }
    fn rope(
        &self,
        x: &Tensor<Self>,
        positions: &Tensor<Self>,
        table: &samebits_tensor::RopeTable<Self>,
    ) -> Result<Tensor<Self>> {
        let right = decompose::rope(x, positions, table)?;
        let half = table.cos.dims()[1];
        if *self != Faulty::ContractsProducts || 2 * half > x.dims()[2] {
            return Ok(right);
        }
        let (heads, head_dim) = (x.dims()[1], x.dims()[2]);
        let (cos, sin) =
            (table.cos.gather(positions)?.to_vec::<f32>()?, table.sin.gather(positions)?.to_vec::<f32>()?);
        let (x, mut y) = (x.to_vec::<f32>()?, right.to_vec::<f32>()?);
        for row in 0..y.len() / head_dim {
            for i in 0..half {
                let (c, s) = (cos[row / heads * half + i], sin[row / heads * half + i]);
                let (x0, x1) = (x[row * head_dim + i], x[row * head_dim + half + i]);
                y[row * head_dim + i] = x0.mul_add(c, -(x1 * s));
            }
        }
        Ok(self.wrap(Tensor::of(&Host, right.shape(), &y)?))
    }
    fn attention(
        &self,
        q: &Tensor<Self>,
        cache: &KvCache<Self>,
        batch: &AttentionBatch<Self>,
        params: &AttentionParams,
    ) -> Result<Tensor<Self>> {
        let mut batch = batch.clone();
        let mut params = *params;
        match self {
            Faulty::AttentionSeesOneKeyMore => {
                batch.positions = batch.positions.scalar(BinaryOp::Add, 1)?;
            }
            Faulty::AttentionTilesFollowTheWindow => params.window = params.window.map(|window| window + 1),
            _ => {}
        }
        decompose::attention(q, cache, &batch, &params)
    }
}
