//! The tensor trait of Samebits and the numerics contract in code.
