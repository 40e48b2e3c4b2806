//! Every table against the oracle.
