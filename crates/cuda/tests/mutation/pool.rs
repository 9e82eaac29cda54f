//! The cases that mutants are run on.

use samebits_conformance::{AttentionSteps, Case, Check, Group, Op, Rng};
use samebits_cuda::FAST_FROM_OF_BLOCKS;
use samebits_tensor::{
    Activation, AttentionParams, CompareOp, DType, Format, HostTensor, HostWeight, KvShape, Scalar, Shape,
    testing::{extreme_blocks, random_blocks},
};

/// Groups whose cases are compositions of the kernels of others, and slow.
const LEFT_OUT: [Group; 4] = [Group::LinearDense, Group::NormLinears, Group::FeedForward, Group::Attention];

/// Begins the names of cases for launches as they are on a device.
pub(crate) const WIDE: &str = "wide/";

/// Begins the names of cases for a device whose layers are products of bf16.
pub(crate) const BF16: &str = "bf16/";

/// Begins the names of cases for a device whose products are not exact.
pub(crate) const FAST: &str = "fast/";

/// Memory that weights of these cases fill when they are unpacked.
pub(crate) const SCRATCH_BYTES: usize = UNPACKED.0 * UNPACKED.1 * 2;

/// Rows and columns of these weights.
const UNPACKED: (usize, usize) = (64, 256);

/// All cases, the same in each process: those of the suite, and what kernels have beyond the decompositions that it is for.
pub(crate) fn cases() -> Vec<Case> {
    let groups = Group::ALL.iter().filter(|group| !LEFT_OUT.contains(group));
    let checks = groups.flat_map(|group| group.checks());
    let suite = checks.filter_map(|check| match check {
        Check::Reference(case) => Some(case),
        Check::Invariance(_) => None,
    });
    let suite: Vec<Case> = suite.collect();
    let repeated = repeated(&suite);
    let suite =
        suite.into_iter().chain(repeated).chain(layers()).chain(fused()).chain(dense_values()).chain(casts());
    let suite = suite.chain(ends()).chain(experts()).chain(exact()).chain(ties());
    let suite = suite.chain(attention(WIDE)).chain(attention(""));
    suite.chain(unpacked()).chain(moves()).chain(rows()).chain(wrong_indices()).collect()
}

/// Each operation of elements with as many as all threads take in a whole number of strides, whatever the size of an element:
/// a thread that goes on too far is out of bounds. The values are those of the suite, over and over.
fn repeated(suite: &[Case]) -> Vec<Case> {
    const LEN: usize = 8192;
    const GROUPS: [&str; 8] =
        ["unary/", "binary/", "compare/", "select/", "glu/", "activate/", "soft_cap/", "cast/"];
    let mut cases: Vec<Case> = Vec::new();
    for case in suite.iter().filter(|case| GROUPS.iter().any(|group| case.name.starts_with(group))) {
        let dtypes: Vec<String> = case.inputs.iter().map(|input| input.dtype().to_string()).collect();
        let name = format!("repeated/{:?}/{}", case.op, dtypes.join(","));
        let is_whole = case.inputs.iter().all(|input| input.shape() == case.inputs[0].shape());
        let elements = case.inputs[0].shape().elements();
        if !is_whole || elements < 64 || cases.iter().any(|other| other.name == name) {
            continue;
        }
        let repeat = |x: &HostTensor| {
            let bytes = x.bytes().iter().copied().cycle().take(LEN * x.dtype().size()).collect();
            tensor(&[4, LEN / 4], x.dtype(), bytes)
        };
        cases.push(Case {
            name,
            op: case.op.clone(),
            inputs: case.inputs.iter().map(repeat).collect(),
            weights: Vec::new(),
        });
    }
    cases
}

/// Layers that fill no tile, for each kernel by its tokens.
fn layers() -> Vec<Case> {
    // Rows and columns: odd ones, whole tiles and spans, and more columns than a block of threads takes at once.
    const OF_32: [(usize, usize); 4] = [(17, 736), (67, 2592), (65, 1536), (2, 17440)];
    const OF_256: [(usize, usize); 4] = [(17, 1280), (67, 2816), (65, 2048), (2, 17664)];
    const BF16_OF_32: [(usize, usize, usize); 2] = [(67, 17, 1120), (35, 67, 288)];
    const BF16_OF_256: [(usize, usize, usize); 2] = [(67, 17, 1280), (35, 67, 512)];
    const DENSE: [(usize, usize); 4] = [(17, 72), (67, 1064), (65, 1536), (2, 8200)];
    const TOKENS: [usize; 8] = [1, 2, 3, 4, 5, 8, 9, 67];
    const ONLY_FEW: usize = 8192;
    let quantized = Format::ALL.iter().filter(|format| format.is_quantized());
    let quantized = quantized.map(|&format| (format, if format.block_len() == 32 { OF_32 } else { OF_256 }));
    let dense = [Format::F32, Format::F16, Format::BF16].map(|format| (format, DENSE));
    let layers = |(format, shapes): (Format, [(usize, usize); 4])| {
        let of = move |(rows, cols)| {
            let tokens = TOKENS.into_iter().filter(move |&tokens| tokens <= 8 || cols < ONLY_FEW);
            tokens.map(move |tokens| layer(format, tokens, rows, cols))
        };
        shapes.into_iter().flat_map(of)
    };
    let by_bf16 = Format::ALL.into_iter().filter(|format| format.is_quantized()).flat_map(|format| {
        let shapes = if format.block_len() == 32 { BF16_OF_32 } else { BF16_OF_256 };
        shapes.into_iter().map(move |(tokens, rows, cols)| {
            let case = layer(format, tokens, rows, cols);
            Case { name: format!("{BF16}{}", case.name), ..case }
        })
    });
    quantized.chain(dense).flat_map(layers).chain(by_bf16).collect()
}

/// Layers whose weights are unpacked first.
fn unpacked() -> impl Iterator<Item = Case> {
    let formats = Format::ALL.into_iter().filter(|format| format.is_quantized());
    formats.map(|format| {
        let case = layer(format, FAST_FROM_OF_BLOCKS + 1, UNPACKED.0, UNPACKED.1);
        Case { name: format!("{FAST}{}", case.name), ..case }
    })
}

fn layer(format: Format, tokens: usize, rows: usize, cols: usize) -> Case {
    let name = format!("layers/{format}/m={tokens},n={rows},k={cols}");
    let weights = vec![weight(&name, format, rows, cols, tokens == 3)];
    let inputs = vec![floats([tokens, cols], &Rng::named(&name).bells(tokens * cols))];
    Case { name, op: Op::Linear, inputs, weights }
}

/// Layers of a norm, and feed-forward layers, whose inputs are quantised as they are computed. The longest rows do not fit
/// into shared memory.
fn fused() -> Vec<Case> {
    let mut cases = Vec::new();
    for (format, lens) in [(Format::Q8_0, [64, 1056, 8448]), (Format::Q4K, [256, 1280, 8448])] {
        for (len, tokens) in lens.into_iter().zip([3, 2, 2]) {
            let name = format!("fused/norm/{format}/k={len}");
            let mut rng = Rng::named(&name);
            let inputs =
                vec![floats([tokens, len], &wide(&mut rng, tokens * len)), floats([len], &rng.bells(len))];
            let weights = [1, 2].map(|rows| weight(&name, format, rows, len, false)).into();
            cases.push(Case { name, op: Op::Linears(Some(1e-5)), inputs, weights });
            for activation in [Activation::Silu, Activation::GeluTanh] {
                let name = format!("fused/feed_forward/{activation:?}/{format}/k={len}");
                let inputs = vec![floats([tokens, 32], &wide(&mut Rng::named(&name), tokens * 32))];
                let part = |rows, cols, format| weight(&name, format, rows, cols, false);
                let weights =
                    vec![part(len, 32, Format::Q8_0), part(len, 32, Format::Q4_0), part(2, len, format)];
                cases.push(Case { name, op: Op::FeedForward(activation, None), inputs, weights });
            }
        }
    }
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let name = format!("fused/feed_forward/{activation:?}/many");
        let inputs = vec![floats([32, 32], &wide(&mut Rng::named(&name), 32 * 32))];
        let part = |rows, cols, format| weight(&name, format, rows, cols, false);
        let weights =
            vec![part(2048, 32, Format::Q8_0), part(2048, 32, Format::Q4_0), part(1, 2048, Format::Q4K)];
        cases.push(Case { name, op: Op::FeedForward(activation, None), inputs, weights });
    }
    cases
}

/// Layers that end at each place of a tile: of tokens and rows, those before the end are in a tensor, and the next is beside it.
fn ends() -> Vec<Case> {
    let quantized = Format::ALL.iter().filter(|format| format.is_quantized()).flat_map(|&format| {
        let k = format.block_len();
        let of = move |prefix: &str, tokens: usize| {
            let case = layer(format, tokens, if tokens.is_multiple_of(2) { 5 } else { 13 }, k);
            Case { name: format!("{prefix}ends/{}", case.name), ..case }
        };
        let tokens = (64..128).filter(|tokens| (1..4).contains(&(tokens % 8)));
        tokens
            .clone()
            .map(move |tokens| of("", tokens))
            .chain(tokens.filter(|&tokens| tokens < 96).map(move |tokens| of(BF16, tokens)))
    });
    let dense = [Format::F32, Format::F16, Format::BF16].into_iter().flat_map(|format| {
        let of = move |end: usize| {
            let case = layer(format, 9 + end % 4, 8 + end, 24);
            Case { name: format!("ends/{}", case.name), ..case }
        };
        (0..8).map(of)
    });
    quantized.chain(dense).collect()
}

/// The layers of an expert, which end where `layers` and `ends` have others do.
fn experts() -> Vec<Case> {
    let quantized = Format::ALL.iter().filter(|format| format.is_quantized()).flat_map(|&format| {
        let len = format.block_len();
        let long = if len == 32 {
            [(2, 736), (2, 384), (1, 17440), (67, 1120)]
        } else {
            [(2, 1280), (2, 1024), (1, 17664), (67, 1280)]
        };
        let ends = (64..128).filter(|tokens| (1..4).contains(&(tokens % 8))).map(move |tokens| (tokens, len));
        let shapes =
            ends.chain(long).map(move |(tokens, k)| (tokens, [k, len, if tokens % 2 == 0 { 5 } else { 13 }]));
        shapes.map(move |(tokens, dims)| mixture(format, [tokens, 1, 1], dims))
    });
    let dense = [Format::F32, Format::F16, Format::BF16].into_iter().flat_map(|format| {
        let ends = (0..8).map(|end| (17 + end % 4, [24, 24, 8 + end]));
        let shapes = ends.chain([(1, [8200, 8, 3]), (3, [1064, 40, 33]), (67, [1064, 72, 67])]);
        shapes.map(move |(tokens, dims)| mixture(format, [tokens, 1, 1], dims))
    });
    // More choices than a loop takes at once, of which some count less than nothing.
    let choices = [(3, 7, 9), (5, 6, 7)].map(|routes| mixture(Format::Q8_0, routes.into(), [32, 32, 9]));
    quantized.chain(dense).chain(choices).collect()
}

/// `choices` of `count` experts for each of `tokens`, and their layers, `[inner, k]` and `[n, inner]`.
fn mixture(format: Format, [tokens, choices, count]: [usize; 3], [k, inner, n]: [usize; 3]) -> Case {
    let name = format!("experts/{format}/t={tokens},k={k},inner={inner},n={n}/{choices} of {count}");
    let mut rng = Rng::named(&name);
    let part = |rows, cols| weight(&name, format, count * rows, cols, false);
    let weights = vec![part(inner, k), part(inner, k), part(n, inner)];
    let ids: Vec<i32> =
        (0..tokens).flat_map(|_| rng.order(count).into_iter().take(choices).map(|id| id as i32)).collect();
    let ids = tensor(&[tokens, choices], DType::I32, bytemuck::cast_slice(&ids).to_vec());
    let each = floats([tokens, choices], &rng.bells(tokens * choices));
    let inputs = vec![floats([tokens, k], &rng.bells(tokens * k)), ids, each];
    Case { name, op: Op::Experts(count, Activation::Silu, None), inputs, weights }
}

/// Comparisons of what is often equal.
fn ties() -> Vec<Case> {
    let integers = |modulus: usize| integers(&(0..67).map(|i| (i % modulus) as i32).collect::<Vec<_>>());
    let values = |modulus: usize| floats([67], &(0..67).map(|i| (i % modulus) as f32).collect::<Vec<_>>());
    let cases = [CompareOp::Lt, CompareOp::Le, CompareOp::Eq].into_iter().flat_map(|op| {
        [vec![integers(5), integers(3)], vec![values(5), values(3)]].map(|inputs| Case {
            name: format!("ties/{op:?}/{}", inputs[0].dtype()),
            op: Op::Compare(op),
            inputs,
            weights: Vec::new(),
        })
    });
    cases.collect()
}

/// Layers whose inputs are quantised as they are computed, one value of each block being all that it has: a result is a block's
/// scale times an integer, so that every bit of the value shows.
fn exact() -> Vec<Case> {
    let mut cases = Vec::new();
    for (format, inner) in [(Format::Q8_0, 1024), (Format::Q4K, 6144)] {
        for activation in [Activation::Silu, Activation::GeluTanh] {
            cases.push(exact_feed_forward(format, inner, activation));
        }
    }
    for (format, len) in
        [(Format::Q8_0, 2592), (Format::Q4K, 4352), (Format::Q8_0, 8480), (Format::Q4K, 8448)]
    {
        cases.push(exact_norm(format, len));
    }
    cases
}

/// Each of 8 tokens takes a column of gate and up as it is.
fn exact_feed_forward(format: Format, inner: usize, activation: Activation) -> Case {
    const TOKENS: usize = 8;
    let name = format!("exact/feed_forward/{activation:?}/{format}");
    let block_len = format.block_len();
    let mut one_hot = vec![0.0; TOKENS * TOKENS];
    one_hot.iter_mut().step_by(TOKENS + 1).for_each(|x| *x = 1.0);
    let gate: Vec<f32> = Rng::named(&name).bells(inner * TOKENS).iter().map(|x| x * 5.0 - 1.0).collect();
    let is_own = |row: usize, token: usize| row % block_len == own_place(row / block_len + token, block_len);
    let up = |i: usize| if is_own(i / TOKENS, i % TOKENS) { [1.0, -0.7][i / TOKENS % 2] } else { 0.0 };
    let up: Vec<f32> = (0..inner * TOKENS).map(up).collect();
    let matrix = |values: &[f32]| HostWeight {
        name: name.clone(),
        format: Format::F32,
        shape: vec![inner, TOKENS],
        bytes: bytemuck::cast_slice(values).to_vec().into(),
    };
    let weights = vec![matrix(&gate), matrix(&up), diagonal(&name, format, inner)];
    let inputs = vec![floats([TOKENS, TOKENS], &one_hot)];
    Case { name, op: Op::FeedForward(activation, None), inputs, weights }
}

fn exact_norm(format: Format, len: usize) -> Case {
    let name = format!("exact/norm/{format}/k={len}");
    let block_len = format.block_len();
    let mut rng = Rng::named(&name);
    let x = floats([2, len], &wide(&mut rng, 2 * len));
    let weight = rng.bells(len).into_iter().enumerate();
    let weight =
        weight.map(|(i, w)| if i % block_len == own_place(i / block_len, block_len) { w } else { 0.0 });
    let weight = floats([len], &weight.collect::<Vec<_>>());
    let weights = vec![diagonal(&name, format, len), diagonal(&name, format, len)];
    Case { name, op: Op::Linears(Some(1e-5)), inputs: vec![x, weight], weights }
}

/// The place of the only value of a block, which goes through all that a lane has, and through lanes.
fn own_place(block: usize, block_len: usize) -> usize {
    (block * 32 + block / 8 * 5) % block_len
}

/// A row for each block of columns, all else being zeros.
fn diagonal(name: &str, format: Format, cols: usize) -> HostWeight {
    let blocks = cols / format.block_len();
    let mut bytes = vec![0; blocks * blocks * format.block_bytes()];
    for (row, block) in bytes.chunks_exact_mut(blocks * format.block_bytes()).enumerate() {
        let own = &mut block[row * format.block_bytes()..][..format.block_bytes()];
        own.copy_from_slice(&random_blocks(format, 1, format.block_len(), row as u64));
    }
    HostWeight { name: name.into(), format, shape: vec![blocks, cols], bytes: bytes.into() }
}

/// Functions of one value, over so many that a rounding in the middle of them shows.
fn dense_values() -> Vec<Case> {
    let mut values: Vec<f32> = (0..1 << 16).map(|i| (i as f32 - 32768.0) * (100.0 / 32768.0)).collect();
    // Halfway between multiples of ln 2, where the polynomial of `exp` is the longest; what is small is lost in 1 + exp.
    values.extend((0..1 << 16).map(|i| {
        let (turn, place) = (i / 512 - 64, i as f32 % 512.0 / 512.0);
        (turn as f32 + 0.35 + 0.3 * place) * std::f32::consts::LN_2
    }));
    // Where `exp` goes over to infinity, to zero, and to halves of its argument, and the values around.
    for bound in [88.722_84_f32, 87.336_55, 44.361_42, 103.972_08, 9.010_913, 0.5, 1e-4] {
        for bits in bound.to_bits() - 2..=bound.to_bits() + 2 {
            values.extend([f32::from_bits(bits), -f32::from_bits(bits)]);
        }
    }
    let (x, small) = (pair(&values), pair(&values.iter().map(|x| x / 16.0).collect::<Vec<_>>()));
    let up = pair(&wide(&mut Rng::named("up"), values.len()));
    let case =
        |name: String, op, inputs| Case { name: format!("dense/{name}"), op, inputs, weights: Vec::new() };
    let mut cases = vec![case("softmax".into(), Op::Softmax, vec![small.clone()])];
    let tiny = pair(&values.iter().map(|x| x / 100.0).collect::<Vec<_>>());
    for (kind, x) in [("large", x), ("small", small), ("tiny", tiny)] {
        for cap in [30.0, 0.5] {
            cases.push(case(format!("cap/{cap}/{kind}"), Op::SoftCap(cap), vec![x.clone()]));
        }
        for it in [Activation::Silu, Activation::GeluTanh] {
            cases.push(case(format!("{it:?}/{kind}"), Op::Activate(it), vec![x.clone()]));
            cases.push(case(format!("glu/{it:?}/{kind}"), Op::Glu(it), vec![x.clone(), up.clone()]));
        }
    }
    cases
}

/// Two rows of an even number of values.
fn pair(values: &[f32]) -> HostTensor {
    floats([2, values.len() / 2], values)
}

/// Every cast of values around the bounds of the integers and of all magnitudes, in numbers that fill no piece.
fn casts() -> Vec<Case> {
    const TYPES: [DType; 6] = [DType::F32, DType::F16, DType::BF16, DType::I32, DType::I8, DType::U8];
    let mut values: Vec<f32> =
        vec![0.0, 0.5, 1.5, 2.5, 126.5, 127.0, 127.5, 128.0, 129.0, 254.5, 255.0, 255.5];
    values.extend([256.0, 257.0, 300.7, 1000.3, 2049.0, 32767.0, 65504.0, 65519.0, 65520.0, 1e6, 1e20]);
    values.extend((0..1000).map(|i| (i as f32).powi(2) * 1.013 + i as f32 / 7.0));
    let values: Vec<f32> = values.iter().flat_map(|&x| [x, -x, 1.0 / (x + 1.0)]).collect();
    let len = values.len();
    let integer = |i: u32| (i.wrapping_mul(0x9e37_79b9) >> (i % 32)).cast_signed();
    // Ties of bfloat16, and what is just beside them, in bits that f32 does not have.
    let tie = |i: u32| {
        (((i % 5) << 23 | 1 << 30 | 1 << 22 | [0, 1, 0x80, 0xff, 0x100, 0x101][i as usize % 6])
            >> (i / 6 % 7))
            .cast_signed()
    };
    let integer = |i: u32| if i.is_multiple_of(2) { tie(i / 2) } else { integer(i) };
    let integers: Vec<i32> =
        (0..len as u32).map(|i| if i % 3 == 0 { integer(i).wrapping_neg() } else { integer(i) }).collect();
    let bytes: Vec<u8> = (0..len).map(|i| i as u8).collect();
    let of = |dtype: DType| -> Vec<u8> {
        match dtype {
            DType::F32 => bytemuck::cast_slice(&values).to_vec(),
            DType::F16 => values.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect(),
            DType::BF16 => values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect(),
            DType::I32 => bytemuck::cast_slice(&integers).to_vec(),
            _ => bytes.clone(),
        }
    };
    let pairs = TYPES.into_iter().flat_map(|from| TYPES.into_iter().map(move |to| (from, to)));
    let case = |(from, to): (DType, DType)| Case {
        name: format!("values/cast/{from}->{to}"),
        op: Op::Cast(to),
        inputs: vec![tensor(&[len], from, of(from))],
        weights: Vec::new(),
    };
    pairs.filter(|(from, to)| from != to).map(case).collect()
}

/// Attention over three tiles, whole and in part, for each of its kernels: heads of each size, one token of a sequence and more.
fn attention(prefix: &str) -> Vec<Case> {
    let params = |window, soft_cap| AttentionParams { scale: 0.2, window, soft_cap };
    let kinds = [params(None, None), params(Some(150), Some(20.0)), params(Some(1), None)];
    let batches: [&[(usize, usize)]; 5] =
        [&[(299, 1)], &[(700, 1)], &[(140, 1), (7, 1), (255, 1)], &[(280, 9)], &[(120, 11), (0, 5)]];
    let mut cases = Vec::new();
    for head_dim in [16, 48, 64, 96, 128, 160, 192, 256] {
        for (params, batch) in kinds.iter().flat_map(|params| batches.map(|batch| (params, batch))) {
            cases.push(attention_case(prefix, [6, 2, head_dim], params, batch));
        }
    }
    // Tiles enough that the loop which merges them goes around.
    cases.push(attention_case(prefix, [6, 2, 16], &AttentionParams { scale: 0.5, ..kinds[0] }, &[(1030, 1)]));
    cases.extend([48, 80, 144].into_iter().flat_map(|head_dim| attention_ends(prefix, head_dim)));
    cases
}

/// Every key that a lane has of a tile is the newest and the oldest that some row sees.
fn attention_ends(prefix: &str, head_dim: usize) -> Vec<Case> {
    let params = |window| AttentionParams { scale: 0.2, window: Some(window), soft_cap: None };
    // Of eight keys that four lanes have, a pair.
    let alone = |count: usize| (0..count).filter(|i| matches!(i % 8, 2 | 3)).map(|past| (past, 1)).collect();
    // More heads of a group than a block of threads has rows.
    let wide = |heads, batch| attention_case(prefix, [heads, 2, head_dim], &params(3), batch);
    let mut cases = vec![wide(20, &[(5, 1)]), wide(140, &[(5, 2)])];
    for batch in [vec![(0, 168)], alone(168)] {
        cases.push(attention_case(prefix, [1, 1, head_dim], &params(40), &batch));
    }
    // Rows see their own key alone. The value of each other key is no number, or what else is in the cache; then all scores are -inf,
    // and what is not seen must not count all the same.
    for (batch, kinds) in
        [(vec![(0, 136)], &["even", "odd", "stale", "-inf"][..]), (alone(136), &["stale", "-inf"])]
    {
        for &kind in kinds {
            let mut case = attention_case(prefix, [1, 1, head_dim], &params(1), &batch);
            case.name += kind;
            let tokens = case.inputs[0].shape()[0];
            let of = |x: &HostTensor, value: &dyn Fn(usize) -> f32| {
                let each = x.shape().elements() / tokens;
                let values = (0..x.shape().elements()).map(|i| value(i / each));
                let bytes: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
                tensor(x.shape().dims(), DType::F32, bytes)
            };
            match kind {
                "stale" => {
                    for part in [8, 10] {
                        case.inputs[part] = of(&case.inputs[part], &|_| f32::NAN);
                    }
                }
                "-inf" => {
                    case.inputs[0] = of(&case.inputs[0], &|_| 3e38);
                    case.inputs[1] = of(&case.inputs[1], &|_| -3e38);
                }
                _ => {
                    let parity = usize::from(kind == "odd");
                    let value = |token: usize| if token % 2 == parity { f32::NAN } else { token as f32 };
                    case.inputs[2] = of(&case.inputs[2], &value);
                }
            }
            cases.push(case);
        }
    }
    cases
}

/// Past and new tokens of each sequence.
fn attention_case(
    prefix: &str,
    [heads, kv_heads, head_dim]: [usize; 3],
    params: &AttentionParams,
    batch: &[(usize, usize)],
) -> Case {
    // Pages of each size that a cache may have.
    let (window, new) = (params.window.unwrap_or_default(), batch[0].1);
    let page = [16, 64, 128, 32][(head_dim / 16 + batch.len() + new + window) % 4];
    let batch_name = match batch {
        [first, .., last] if batch.len() > 8 => format!("{first:?}..{last:?}"),
        _ => format!("{batch:?}"),
    };
    let name = format!("{prefix}attention/{heads}/{kv_heads}/{head_dim}/{params:?}/{batch_name}");
    let rng = &mut Rng::named(&name);
    let longest = batch.iter().map(|(past, new)| past + new).max().unwrap_or_default();
    let pages = longest.div_ceil(page);
    let kv = KvShape { pages: batch.len() * pages, page_size: page, kv_heads, head_dim };
    let tables: Vec<i32> = rng.order(kv.pages).into_iter().map(|page| page as i32).collect();
    let tokens: Vec<(usize, usize)> = batch
        .iter()
        .enumerate()
        .flat_map(|(sequence, &(past, new))| (past..past + new).map(move |position| (sequence, position)))
        .collect();
    let of = |value: fn(&(usize, usize)) -> i32| integers(&tokens.iter().map(value).collect::<Vec<_>>());
    let slot = |&(sequence, position): &(usize, usize)| {
        tables[sequence * pages + position / page] * page as i32 + (position % page) as i32
    };
    let slots = integers(&tokens.iter().map(slot).collect::<Vec<_>>());
    let t = tokens.len();
    let mut inputs = vec![floats([t, heads, head_dim], &rng.bells(t * heads * head_dim))];
    inputs.extend([(); 2].map(|()| floats([t, kv_heads, head_dim], &rng.bells(t * kv_heads * head_dim))));
    inputs.extend([slots, of(|token| token.1 as i32), of(|token| token.0 as i32)]);
    inputs.push(tensor(&[batch.len(), pages], DType::I32, bytemuck::cast_slice(&tables).to_vec()));
    for columns in [kv.head_blocks(), 1] {
        inputs.push(tensor(&[kv.rows(), head_dim], DType::I8, rng.bytes(kv.rows() * head_dim)));
        let scales: Vec<f32> =
            rng.bells(kv.rows() * columns).iter().map(|x| 0.01 + x.abs() / 100.0).collect();
        inputs.push(floats([kv.rows(), columns], &scales));
    }
    let steps = std::iter::once(0..t).collect();
    let op = Op::Attention(AttentionSteps { kv, params: *params, steps, max_context: longest });
    Case { name, op, inputs, weights: Vec::new() }
}

/// Moves of elements of each size, alone and in pieces of 16 bytes: many axes, many parts, many rows.
fn moves() -> Vec<Case> {
    let made = |name: &str, op| Case {
        name: format!("full strides/{name}"),
        op,
        inputs: Vec::new(),
        weights: Vec::new(),
    };
    let mut cases = vec![
        made("iota", Op::Iota(Shape::from([2, 512]), 1)),
        made("full/16", Op::Full(Shape::from([4096]), Scalar::F32(1.5))),
        made("full/4", Op::Full(Shape::from([1023]), Scalar::I32(-7))),
        made("full/1", Op::Full(Shape::from([1537]), Scalar::I8(-3))),
    ];
    for dtype in [DType::F32, DType::F16, DType::I8] {
        let mut push = |name: String, op, inputs| {
            cases.push(Case { name: format!("moves/{dtype}/{name}"), op, inputs, weights: Vec::new() });
        };
        for inner in [3, 16] {
            let of = |shape: &[usize]| filled(shape, dtype, 1);
            // No two axes that lie side by side stay so.
            let axes = vec![6, 5, 4, 3, 2, 1, 0, 7];
            push(format!("permute/{inner}"), Op::Permute(axes), vec![of(&[2, 3, 2, 2, 3, 2, 2, inner])]);
            let axes = vec![7, 6, 5, 4, 3, 2, 1, 0];
            push(format!("reverse/{inner}"), Op::Permute(axes), vec![of(&[2, 3, 2, 2, 3, 2, 2, inner])]);
            let axes = vec![2, 0, 1, 3];
            push(format!("permute/{inner}/4"), Op::Permute(axes), vec![of(&[5, 4, 3, inner])]);
            let wide = Shape::from([7, 5, inner]);
            push(format!("broadcast/{inner}"), Op::Broadcast(wide), vec![of(&[7, 1, inner])]);
            let parts = (1..=9).map(|n| filled(&[3, n, 21 * inner], dtype, n)).collect();
            push(format!("concat/{inner}"), Op::Concat(1), parts);
            for rows in [1, 4, 5, 9] {
                let indices: Vec<i32> = (0..rows).map(|i| (i * 5 + 2) % 7).collect();
                // More pieces than threads.
                let (indices, columns) = (integers(&indices), inner * 531);
                let (x, from) = (of(&[7, columns]), filled(&[rows as usize, columns], dtype, 5));
                push(
                    format!("scatter/{columns}/{rows}"),
                    Op::Scatter,
                    vec![x.clone(), indices.clone(), from],
                );
                push(format!("gather/{columns}/{rows}"), Op::Gather, vec![x, indices]);
            }
        }
        // As many pieces as all threads take in whole strides.
        let wide = 16384 / dtype.size();
        push(
            "full strides/permute".into(),
            Op::Permute(vec![1, 0, 2]),
            vec![filled(&[4, 4, wide / 16], dtype, 1)],
        );
        push("full strides/elements".into(), Op::Permute(vec![1, 0]), vec![filled(&[32, 32], dtype, 1)]);
        let halves = (0..2).map(|n| filled(&[1, wide / 2], dtype, n)).collect();
        push("full strides/concat".into(), Op::Concat(1), halves);
        let x = filled(&[3, wide], dtype, 1);
        push("full strides/gather".into(), Op::Gather, vec![x.clone(), integers(&[2, 0])]);
        let from = filled(&[2, wide], dtype, 7);
        push("full strides/scatter".into(), Op::Scatter, vec![x, integers(&[2, 0]), from]);
        // One thread, which has to note what is wrong itself.
        let columns = [1, 16 / dtype.size()];
        for (index, columns) in [-1, 3].into_iter().flat_map(|index| columns.map(|columns| (index, columns)))
        {
            // An unrolled loop has the wrong row in each of its places.
            for place in 0..7 {
                let mut indices = [1, 0, 2, 1, 0, 1, 2];
                indices[place] = index;
                let (x, rows) = (filled(&[3, columns], dtype, 0), filled(&[7, columns], dtype, 9));
                let name = format!("{columns}/wrong {index} at {place}");
                push(format!("gather/{name}"), Op::Gather, vec![x.clone(), integers(&indices)]);
                push(format!("scatter/{name}"), Op::Scatter, vec![x, integers(&indices), rows]);
            }
        }
    }
    cases
}

/// Long rows: of embeddings, so that a thread has several pieces, and of norms, that shared memory cannot hold.
fn rows() -> Vec<Case> {
    let embedding = |format: Format| {
        let name = format!("rows/embedding/{format}");
        let weights = vec![weight(&name, format, 5, 2304, false)];
        Case { name, op: Op::Embedding, inputs: vec![integers(&[4, 0, 2])], weights }
    };
    let mut cases: Vec<Case> = Format::ALL.iter().copied().map(embedding).collect();
    for len in [8193, 8452, 8192] {
        let mut rng = Rng::named("rows");
        let (x, weight) = (floats([2, len], &wide(&mut rng, 2 * len)), floats([len], &rng.bells(len)));
        let bias = floats([len], &rng.bells(len));
        let norm = |name: &str, op, inputs| Case {
            name: format!("rows/{name}/{len}"),
            op,
            inputs,
            weights: Vec::new(),
        };
        cases.push(norm("rms_norm", Op::RmsNorm(1e-5), vec![x.clone(), weight.clone()]));
        cases.push(norm("layer_norm", Op::LayerNorm(1e-5), vec![x, weight, bias]));
    }
    cases
}

/// Rows before the first and behind the last: an error, and nothing written.
fn wrong_indices() -> Vec<Case> {
    let mut cases = Vec::new();
    for index in [-1, 3, i32::MAX] {
        let indices = integers(&[1, index]);
        let table = floats([3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let mut mixed = wrong_expert(index);
        cases.append(&mut mixed);
        let heads = floats([2, 1, 4], &[1.0, -2.0, 3.0, 4.0, 0.5, 6.0, 7.0, 8.0]);
        cases.push(wrong_place("position", &indices, &integers(&[1, 2])));
        cases.push(wrong_place(
            "slot",
            &integers(&[1, 2]),
            &integers(&[1, if index == 3 { 16 } else { index }]),
        ));
        let name = format!("wrong/rope/{index}");
        let inputs = vec![heads, indices.clone(), table.clone(), table];
        cases.push(Case { name, op: Op::Rope, inputs, weights: Vec::new() });
        cases.extend(Format::ALL.iter().map(|&format| {
            let name = format!("wrong/embedding/{format}/{index}");
            let weights = vec![weight(&name, format, 3, format.block_len().max(8), false)];
            Case { name, op: Op::Embedding, inputs: vec![indices.clone()], weights }
        }));
    }
    cases
}

/// A token at a position that the table has not, or in a slot that the cache has not.
fn wrong_place(which: &str, positions: &HostTensor, slots: &HostTensor) -> Case {
    let name = format!("wrong/rotate_and_store/{which}/{:?}", [positions, slots].map(HostTensor::bytes));
    let kv = KvShape { pages: 1, page_size: 16, kv_heads: 1, head_dim: 4 };
    let mut rng = Rng::named(&name);
    let mut of = |shape: &[usize]| {
        let values = rng.bells(shape.iter().product());
        tensor(shape, DType::F32, bytemuck::cast_slice(&values).to_vec())
    };
    let [q, k, v] = [[2, 2, 4], [2, 1, 4], [2, 1, 4]].map(|shape| of(&shape));
    let [cos, sin, k_scale, v_scale] = [[3, 2], [3, 2], [16, 1], [16, 1]].map(|shape| of(&shape));
    let bytes = || tensor(&[16, 4], DType::I8, vec![7; 64]);
    let inputs =
        vec![q, k, v, positions.clone(), cos, sin, slots.clone(), bytes(), k_scale, bytes(), v_scale];
    Case { name, op: Op::RotateAndStore(kv), inputs, weights: Vec::new() }
}

/// An expert that there is not, of few pairs and of many.
fn wrong_expert(index: i32) -> Vec<Case> {
    let of = |format: Format, tokens: usize| {
        let name = format!("wrong/experts/{format}/{tokens}/{index}");
        let len = format.block_len().max(8);
        let weights = [len, len, 8].map(|rows| weight(&name, format, 3 * rows, len, false)).into();
        let mut ids = vec![1; tokens];
        ids[tokens / 2] = index;
        let ids = tensor(&[tokens, 1], DType::I32, bytemuck::cast_slice(&ids).to_vec());
        let x = Rng::named(&name).bells(tokens * len);
        let inputs = vec![floats([tokens, len], &x), ids, floats([tokens, 1], &vec![1.0; tokens])];
        Case { name, op: Op::Experts(3, Activation::Silu, None), inputs, weights }
    };
    let few = Format::ALL.iter().map(|&format| of(format, 2));
    few.chain([of(Format::Q8_0, 20)]).collect()
}

/// Values of several magnitudes.
fn wide(rng: &mut Rng, n: usize) -> Vec<f32> {
    rng.bells(n).into_iter().enumerate().map(|(i, x)| x * [1.0, 7.0, 0.1, 30.0][i % 4]).collect()
}

fn weight(name: &str, format: Format, rows: usize, cols: usize, extreme: bool) -> HostWeight {
    let bytes =
        if extreme { extreme_blocks(format, rows, cols) } else { random_blocks(format, rows, cols, 7) };
    HostWeight { name: name.into(), format, shape: vec![rows, cols], bytes: bytes.into() }
}

/// Bytes that are finite floats of every size.
fn filled(shape: &[usize], dtype: DType, seed: usize) -> HostTensor {
    let len = shape.iter().product::<usize>() * dtype.size();
    tensor(shape, dtype, (0..len).map(|i| ((i + seed) * 7919 % 113) as u8).collect())
}

fn floats<const N: usize>(shape: [usize; N], values: &[f32]) -> HostTensor {
    tensor(&shape, DType::F32, bytemuck::cast_slice(values).to_vec())
}

fn integers(values: &[i32]) -> HostTensor {
    tensor(&[values.len()], DType::I32, bytemuck::cast_slice(values).to_vec())
}

fn tensor(shape: &[usize], dtype: DType, bytes: Vec<u8>) -> HostTensor {
    HostTensor::new(Shape::from(shape), dtype, bytes.into()).expect("as many bytes as elements")
}
