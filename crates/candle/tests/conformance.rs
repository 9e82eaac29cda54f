//! The suite that every exact backend passes bit for bit.

use samebits_candle::{Candle, Device};

samebits_conformance::conformance_tests!(Candle::exact(Device::Cpu));
