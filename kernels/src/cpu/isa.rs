//! Which instructions the kernels use.

#[cfg(target_arch = "aarch64")]
use std::arch::is_aarch64_feature_detected;
#[cfg(target_arch = "x86_64")]
use std::{arch::x86_64::__cpuid, sync::LazyLock};
use std::{env, fmt};

#[cfg(target_arch = "aarch64")]
use super::neon::{Baseline, Dotprod, I8mm, Neon};
#[cfg(target_arch = "x86_64")]
use super::simd::dot_bf16;
#[cfg(target_arch = "x86_64")]
use super::{avx2::Avx2, avx512::Avx512};
use super::{scalar::Scalar, simd::Simd};

/// An instruction set that this CPU has. All give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    #[cfg(target_arch = "aarch64")]
    Neon,
    #[cfg(target_arch = "aarch64")]
    Dotprod,
    #[cfg(target_arch = "aarch64")]
    I8mm,
}

/// Every instruction set that there are kernels for, the best last.
const ALL: &[Kind] = &[
    Kind::Scalar,
    #[cfg(target_arch = "x86_64")]
    Kind::Avx2,
    #[cfg(target_arch = "x86_64")]
    Kind::AvxVnni,
    #[cfg(target_arch = "x86_64")]
    Kind::Avx512,
    #[cfg(target_arch = "x86_64")]
    Kind::Avx512Bf16,
    #[cfg(target_arch = "aarch64")]
    Kind::Neon,
    #[cfg(target_arch = "aarch64")]
    Kind::Dotprod,
    #[cfg(target_arch = "aarch64")]
    Kind::I8mm,
];

/// An instruction set asked for that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IsaError {
    name: String,
}

impl fmt::Display for IsaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = Isa::available().map(Isa::name).collect();
        write!(f, "instruction set {:?} is not one this CPU has: {}", self.name, names.join(", "))
    }
}

impl std::error::Error for IsaError {}

impl Isa {
    /// The portable kernels.
    pub const SCALAR: Isa = Isa(Kind::Scalar);

    /// The environment variable that [`Isa::from_env`] reads.
    pub const VARIABLE: &str = "SAMEBITS_ISA";

    /// The instruction sets of this CPU that have kernels, the best last.
    pub fn available() -> impl Iterator<Item = Isa> {
        ALL.iter().filter(|kind| kind.detected()).map(|&kind| Isa(kind))
    }

    /// The fastest one of this CPU.
    pub fn best() -> Isa {
        Self::available().filter(|isa| isa.0.pays()).last().unwrap_or(Self::SCALAR)
    }

    /// The one that [`Isa::VARIABLE`] names, or else the best.
    ///
    /// # Errors
    /// If it names none that this CPU has.
    pub fn from_env() -> Result<Isa, IsaError> {
        env::var(Self::VARIABLE).map_or(Ok(Self::best()), |name| Self::named(&name))
    }

    /// The one called `scalar`, `avx2`, `avxvnni`, `avx512`, `avx512bf16`, `neon`, `dotprod` or `i8mm`.
    ///
    /// # Errors
    /// If there is none of that name, or this CPU does not have it.
    pub fn named(name: &str) -> Result<Isa, IsaError> {
        Self::available().find(|isa| isa.name() == name).ok_or_else(|| IsaError { name: name.into() })
    }

    /// The name that [`Isa::named`] takes.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::AvxVnni => "avxvnni",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Bf16 => "avx512bf16",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => "neon",
            #[cfg(target_arch = "aarch64")]
            Kind::Dotprod => "dotprod",
            #[cfg(target_arch = "aarch64")]
            Kind::I8mm => "i8mm",
        }
    }

    /// A description for people: `AVX-512 VNNI`.
    pub fn title(self) -> &'static str {
        match self.0 {
            Kind::Scalar => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Kind::AvxVnni => "AVX2 VNNI",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "AVX-512 VNNI",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Bf16 => "AVX-512 VNNI, BF16",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => "NEON",
            #[cfg(target_arch = "aarch64")]
            Kind::Dotprod => "NEON dotprod",
            #[cfg(target_arch = "aarch64")]
            Kind::I8mm => "NEON i8mm",
        }
    }

    /// Tokens of the widest tile of a linear layer.
    pub fn tile(self) -> usize {
        struct Tile;
        impl Kernel for Tile {
            type Output = usize;
            #[inline(always)]
            fn run<S: Simd>(self, _: S) -> usize {
                S::TILE
            }
        }
        self.run(Tile)
    }

    /// Whether there is an instruction for [`Simd::dot_bf16`].
    pub(super) fn has_bf16_dots(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.0 == Kind::Avx512Bf16;
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Runs a kernel, compiled for these instructions.
    #[inline]
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        if K::BF16_DOTS {
            return self.run_bf16_dots(kernel);
        }
        match self.0 {
            Kind::Scalar => kernel.run(Scalar),
            // SAFETY: an `Isa` is made only of what `detected` found on this CPU.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => unsafe { kernel.on_avx2() },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::AvxVnni => unsafe { kernel.on_avxvnni() },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 | Kind::Avx512Bf16 => unsafe { kernel.on_avx512() },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => unsafe { kernel.on_neon() },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Kind::Dotprod => unsafe { kernel.on_dotprod() },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Kind::I8mm => unsafe { kernel.on_i8mm() },
        }
    }
}

impl Isa {
    #[cfg(target_arch = "x86_64")]
    fn run_bf16_dots<K: Kernel>(self, kernel: K) -> K::Output {
        assert!(self.has_bf16_dots(), "{} has no dots of bf16", self.name());
        // SAFETY: that one is made only of what `detected` found on this CPU.
        unsafe { kernel.on_avx512_bf16() }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn run_bf16_dots<K: Kernel>(self, _: K) -> K::Output {
        unreachable!("{} has no dots of bf16", self.name())
    }
}

impl Kind {
    /// Whether it is faster than those before it. Intel's cores take four times as long for a dot of bf16 pairs as for a
    /// fused product of floats.
    fn pays(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self != Kind::Avx512Bf16 || is_amd();
        #[cfg(not(target_arch = "x86_64"))]
        true
    }

    fn detected(self) -> bool {
        match self {
            Kind::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("f16c")
                    && is_x86_feature_detected!("fma")
            }
            #[cfg(target_arch = "x86_64")]
            Kind::AvxVnni => Kind::Avx2.detected() && is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => {
                Kind::Avx2.detected()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Bf16 => {
                // SAFETY: the CPU has the instructions.
                static IN_ORDER: LazyLock<bool> = LazyLock::new(|| unsafe { DotsInOrder.on_avx512_bf16() });
                Kind::Avx512.detected() && is_x86_feature_detected!("avx512bf16") && *IN_ORDER
            }
            // The kernels take byte 0 of a lane for its lowest.
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => cfg!(target_endian = "little") && is_aarch64_feature_detected!("neon"),
            #[cfg(target_arch = "aarch64")]
            Kind::Dotprod => Kind::Neon.detected() && is_aarch64_feature_detected!("dotprod"),
            #[cfg(target_arch = "aarch64")]
            Kind::I8mm => Kind::Dotprod.detected() && is_aarch64_feature_detected!("i8mm"),
        }
    }
}

/// A function over any instruction set; its `run` and all that it calls must be `#[inline(always)]`, so that they are
/// compiled with the instructions of the caller.
pub(super) trait Kernel {
    /// Whether it is for instruction sets with an instruction for [`Simd::dot_bf16`] alone.
    const BF16_DOTS: bool = false;
    type Output;
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// A kernel compiled for each instruction set. As methods of the kernel's type these are compiled with the kernel's module, so
/// that modules are compiled side by side.
trait Compiled: Kernel + Sized {
    /// # Safety
    /// The CPU must have the features.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,f16c,fma")]
    unsafe fn on_avx2(self) -> Self::Output {
        // SAFETY: the caller has seen to it that the CPU has the features.
        self.run(unsafe { Avx2::<false>::new() })
    }

    /// # Safety
    /// The CPU must have the features.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,f16c,fma,avxvnni")]
    unsafe fn on_avxvnni(self) -> Self::Output {
        // SAFETY: the caller has seen to it that the CPU has the features.
        self.run(unsafe { Avx2::<true>::new() })
    }

    /// # Safety
    /// The CPU must have the features.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,f16c,fma")]
    unsafe fn on_avx512(self) -> Self::Output {
        // SAFETY: the caller has seen to it that the CPU has the features.
        self.run(unsafe { Avx512::<false>::new() })
    }

    /// # Safety
    /// The CPU must have the features.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,f16c,fma")]
    unsafe fn on_avx512_bf16(self) -> Self::Output {
        // SAFETY: the caller has seen to it that the CPU has the features.
        self.run(unsafe { Avx512::<true>::new() })
    }

    /// # Safety
    /// The CPU must have the features.
    #[cfg(target_arch = "aarch64")]
    #[target_feature(enable = "neon")]
    unsafe fn on_neon(self) -> Self::Output {
        // SAFETY: the caller has seen to it that the CPU has the features.
        self.run(unsafe { Neon::<Baseline>::new() })
    }

    /// # Safety
    /// The CPU must have the features.
    #[cfg(target_arch = "aarch64")]
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn on_dotprod(self) -> Self::Output {
        // SAFETY: the caller has seen to it that the CPU has the features.
        self.run(unsafe { Neon::<Dotprod>::new() })
    }

    /// # Safety
    /// The CPU must have the features.
    #[cfg(target_arch = "aarch64")]
    #[target_feature(enable = "neon,dotprod,i8mm")]
    unsafe fn on_i8mm(self) -> Self::Output {
        // SAFETY: the caller has seen to it that the CPU has the features.
        self.run(unsafe { Neon::<I8mm>::new() })
    }
}

impl<K: Kernel> Compiled for K {}

/// Whether dots of bf16 pairs round after each product, the high halves first, as Intel's manual says; others' do not say.
#[cfg(target_arch = "x86_64")]
struct DotsInOrder;

#[cfg(target_arch = "x86_64")]
impl Kernel for DotsInOrder {
    type Output = bool;

    /// Some thousand products of all magnitudes, onto sums which they cancel, nearly cancel, round or do not reach.
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        let mut state = 1u64;
        let mut same = true;
        for _ in 0..512 {
            let (mut a, mut b, mut acc) = ([0; 16], [0; 16], [0.0; 16]);
            for lane in 0..16 {
                let word = [(); 4].map(|()| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    (state >> 32) as i32
                });
                // Exponents from 2^-16 on, or from the least of an operand on, to 2^15.
                let range = if lane < 8 { 0x0f80_0f80 } else { 0x1f80_1f80 };
                let lowest = if lane < 8 { 0x3780_3780 } else { 0x2780_2780 };
                (a[lane], b[lane]) = (in_range(word[0], range, lowest), in_range(word[1], range, lowest));
                let (a, b) = (a[lane], b[lane]);
                let first = f32::from_bits((a & HIGH) as u32) * f32::from_bits((b & HIGH) as u32);
                let second = f32::from_bits((a << 16) as u32) * f32::from_bits((b << 16) as u32);
                let sum = [
                    -first,
                    -second,
                    -(first + second),
                    f32::from_bits(in_range(word[2], range, lowest) as u32),
                ];
                let sum = sum[lane % 4];
                let mantissa = if sum == 0.0 { 0 } else { word[3] as u32 >> (9 + (word[3] & 31).min(22)) };
                acc[lane] = f32::from_bits(sum.to_bits() ^ mantissa);
            }
            let (a, b, acc) = (s.load_i32(&a), s.load_i32(&b), s.load(&acc));
            let difference = s.xor(s.bits(s.dot_bf16(acc, a, b)), s.bits(dot_bf16(s, acc, a, b)));
            let mut lanes = [0; 16];
            s.store_i32(difference, &mut lanes);
            same &= lanes == [0; 16];
        }
        same
    }
}

#[cfg(target_arch = "x86_64")]
const HIGH: i32 = 0xffff << 16;

/// Two bf16 with random signs and mantissas, and exponents of `range` from `lowest` on.
#[cfg(target_arch = "x86_64")]
fn in_range(random: i32, range: i32, lowest: i32) -> i32 {
    (random & 0x807f_807f_u32 as i32) | ((random & range) + lowest)
}

#[cfg(target_arch = "x86_64")]
fn is_amd() -> bool {
    let leaf = __cpuid(0);
    (leaf.ebx, leaf.edx, leaf.ecx)
        == (u32::from_le_bytes(*b"Auth"), u32::from_le_bytes(*b"enti"), u32::from_le_bytes(*b"cAMD"))
}

#[cfg(test)]
mod tests {
    use super::super::simd::{ZERO, ZERO_BITS};
    use super::*;

    /// Every method of `Simd` that could differ between instruction sets, on vectors of these bytes.
    struct Methods<'a>(&'a [[u8; 64]; 16]);

    impl Kernel for Methods<'_> {
        type Output = Vec<i32>;

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Vec<i32> {
            let rows = self.0.map(|bytes| s.load_bytes(&bytes));
            let [a, b, c] = [rows[0], rows[1], rows[2]];
            let bytes: &[u8; 32] = self.0[3].first_chunk().expect("bytes");
            let few: &[u8; 16] = bytes.first_chunk().expect("bytes");
            let (low, sum) = (s.and(a, s.splat_i32(0x7f7f7f7f)), s.shr::<8>(c));
            let halfword = s.shr::<16>(b);
            let signed_halfword = s.add_i32(halfword, s.splat_i32(-32768));
            let integer = s.add_i32(signed_halfword, s.splat_i32(ZERO_BITS));
            let scale = s.load_f16(&bytes.map(|byte| byte & 0x7b));
            let (x, y) = (s.to_f32(a), s.to_f32(b));
            let mut out = Vec::new();
            let mut put = |x: S::I| {
                let mut lanes = [0; 16];
                s.store_i32(x, &mut lanes);
                out.extend(lanes);
            };
            for ints in [
                s.dot_u8(sum, a, b),
                s.dot_u7(sum, low, b),
                s.dot_pairs(sum, bytes, [-32000, 0x7fff]),
                s.load_u8(few),
                s.load_i8(few),
                s.add_i32(a, b),
                s.mul_i32(a, b),
                s.max_i32(a, b),
                s.and(a, b),
                s.or(a, b),
                s.xor(a, b),
                s.shl::<3>(a),
                s.shr::<5>(a),
                s.lookup(few, s.and(a, s.splat_i32(0x0f0f0f0f))),
                s.round_i32(s.mul(x, s.splat(0.0009765625))),
                s.interleave([few, bytes.last_chunk().expect("bytes"), few, few]),
                s.splat_i32(s.sum_i32(s.shr::<8>(a))),
                s.splat_i32(s.max_lane_i32(a)),
                s.add_product_i16(sum, signed_halfword, s.load_i8(few)),
                s.max_u16(a, b),
                s.at_least_u16(a, 0x2780),
            ] {
                put(ints);
            }
            let (less, both) = (s.lt(x, y), s.and_mask(s.lt(x, y), s.lt_i32(a, c)));
            for floats in [
                s.add(x, y),
                s.sub(x, y),
                s.mul(x, y),
                s.div(x, y),
                s.abs(x),
                s.neg(x),
                s.max(x, y),
                s.larger(x, y),
                s.add_exact_product(x, s.to_f32(signed_halfword), s.to_f32(s.load_i8(few))),
                s.sub_exact_product(x, s.to_f32(signed_halfword), s.to_f32(s.load_i8(few))),
                s.add(s.scaled_integer(integer, scale, s.mul(scale, s.splat(-ZERO))), s.splat(0.0)),
                s.round_f16(s.mul(y, s.splat(1.0e-10))),
                s.select(less, x, y),
                s.select(both, x, y),
                scale,
                s.splat(s.tree(x)),
                s.splat(s.max_lane(x)),
                s.splat(s.largest_lane(x)),
            ]
            .into_iter()
            .chain(s.even_odd(x, y))
            {
                put(s.bits(floats));
            }
            let wide = s.interleave_wide([&self.0[4], &self.0[5], &self.0[6], &self.0[7]]);
            s.in_order(wide).into_iter().chain(s.transpose(rows)).for_each(&mut put);
            let words = [s.shr::<16>(a), halfword, s.shr::<16>(c), s.shr::<16>(rows[3])];
            s.byte_slices(words).into_iter().for_each(put);
            let mut last = [0; 16];
            s.store_low_bytes(a, &mut last);
            out.extend(last.map(i32::from));
            out
        }
    }

    #[test]
    fn every_instruction_set_computes_what_the_portable_lanes_do() {
        let mut state = 1u64;
        let mut byte = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let random = (state >> 40) as u8;
            // Extremes are frequent.
            if random & 1 == 0 { [0, 127, 128, 255][usize::from(random >> 6)] } else { random }
        };
        for round in 0..1000 {
            let bytes = [(); 16].map(|()| [(); 64].map(|()| byte()));
            let expected = Isa::SCALAR.run(Methods(&bytes));
            for isa in Isa::available() {
                let found = isa.run(Methods(&bytes));
                let differs = expected.iter().zip(&found).position(|(a, b)| a != b);
                assert_eq!(differs, None, "{} in round {round}", isa.name());
            }
        }
    }

    #[test]
    fn names_find_their_instruction_sets() {
        for isa in Isa::available() {
            assert_eq!(Isa::named(isa.name()), Ok(isa));
        }
        assert!(Isa::named("sse").is_err());
    }
}
