//! Kubernetes as data and pure functions.
//!
//! Nothing here does IO, speaks HTTP or spawns a task; every rule that can be a pure function of its
//! input lives in this crate, so that it is tested by tables and shared by all the rooms of the house.

pub mod clock;
pub mod field;
pub mod labels;
pub mod quantity;
pub mod random;
pub mod resource;
pub mod status;
pub mod value;

pub use status::Status;
