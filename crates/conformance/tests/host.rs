//! The reference against itself: every case runs, and the invariances hold for the decompositions.

use samebits_cpu::Host;

samebits_conformance::conformance_tests!(Host);
