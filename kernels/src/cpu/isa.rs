//! Which instructions the kernels use.

#[cfg(target_arch = "aarch64")]
use std::arch::is_aarch64_feature_detected;
use std::{env, fmt};

#[cfg(target_arch = "aarch64")]
use super::neon::{Baseline, Dotprod, I8mm, Neon};
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
        Self::available().last().unwrap_or(Self::SCALAR)
    }

    /// The one that [`Isa::VARIABLE`] names, or else the best.
    ///
    /// # Errors
    /// If it names none that this CPU has.
    pub fn from_env() -> Result<Isa, IsaError> {
        env::var(Self::VARIABLE).map_or(Ok(Self::best()), |name| Self::named(&name))
    }

    /// The one called `scalar`, `avx2`, `avxvnni`, `avx512`, `neon`, `dotprod` or `i8mm`.
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

    /// Runs a kernel, compiled for these instructions.
    #[inline]
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            Kind::Scalar => kernel.run(Scalar),
            // SAFETY: an `Isa` is made only of what `detected` found on this CPU.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => unsafe { run_avx2(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::AvxVnni => unsafe { run_avxvnni(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => unsafe { run_avx512(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => unsafe { run_neon(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Kind::Dotprod => unsafe { run_dotprod(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Kind::I8mm => unsafe { run_i8mm(kernel) },
        }
    }
}

impl Kind {
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
    type Output;
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// # Safety
/// The CPU must have the features.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c,fma")]
unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller has seen to it that the CPU has the features.
    kernel.run(unsafe { Avx2::<false>::new() })
}

/// # Safety
/// The CPU must have the features.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c,fma,avxvnni")]
unsafe fn run_avxvnni<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller has seen to it that the CPU has the features.
    kernel.run(unsafe { Avx2::<true>::new() })
}

/// # Safety
/// The CPU must have the features.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,f16c,fma")]
unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller has seen to it that the CPU has the features.
    kernel.run(unsafe { Avx512::new() })
}

/// # Safety
/// The CPU must have the features.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn run_neon<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller has seen to it that the CPU has the features.
    kernel.run(unsafe { Neon::<Baseline>::new() })
}

/// # Safety
/// The CPU must have the features.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon,dotprod")]
unsafe fn run_dotprod<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller has seen to it that the CPU has the features.
    kernel.run(unsafe { Neon::<Dotprod>::new() })
}

/// # Safety
/// The CPU must have the features.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon,dotprod,i8mm")]
unsafe fn run_i8mm<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller has seen to it that the CPU has the features.
    kernel.run(unsafe { Neon::<I8mm>::new() })
}

#[cfg(test)]
mod tests {
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
                s.select(less, x, y),
                s.select(both, x, y),
                s.load_f16(&bytes.map(|byte| byte & 0x7b)),
                s.load_bf16(&bytes.map(|byte| byte & 0x7b)),
                s.splat(s.tree(x)),
                s.splat(s.max_lane(x)),
            ] {
                put(s.bits(floats));
            }
            let wide = s.interleave_wide([&self.0[4], &self.0[5], &self.0[6], &self.0[7]]);
            s.in_order(wide).into_iter().chain(s.transpose(rows)).for_each(put);
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
