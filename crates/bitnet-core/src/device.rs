//! Placeholder.
pub struct Device;
