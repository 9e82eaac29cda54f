//! A backend over candle: an independent implementation of the contract and a float oracle.
