//! Which instructions the kernels use.

use std::{env, fmt};

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
    Avx512,
}

/// Every instruction set that there are kernels for, the best last.
const ALL: &[Kind] = &[
    Kind::Scalar,
    #[cfg(target_arch = "x86_64")]
    Kind::Avx2,
    #[cfg(target_arch = "x86_64")]
    Kind::Avx512,
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

    /// The one called `scalar`, `avx2` or `avx512`.
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
            Kind::Avx512 => "avx512",
        }
    }

    /// A description for people: `AVX-512 VNNI`.
    pub fn title(self) -> &'static str {
        match self.0 {
            Kind::Scalar => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "AVX-512 VNNI",
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
            Kind::Avx512 => unsafe { run_avx512(kernel) },
        }
    }
}

impl Kind {
    fn detected(self) -> bool {
        match self {
            Kind::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c"),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
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
#[target_feature(enable = "avx2,f16c")]
unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller has seen to it that the CPU has the features.
    kernel.run(unsafe { Avx2::new() })
}

/// # Safety
/// The CPU must have the features.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,f16c")]
unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller has seen to it that the CPU has the features.
    kernel.run(unsafe { Avx512::new() })
}
