//! Kubernetes as data and pure functions.
//!
//! Nothing here does IO, speaks HTTP or spawns a task; every rule that can be a pure function of its
//! input lives in this crate, so that it is tested by tables and shared by all the rooms of the house.

pub mod apply;
pub mod cbor;
pub mod cel;
pub mod clock;
pub mod convert;
pub mod custom;
pub mod defaults;
pub mod field;
pub mod fields;
pub mod json;
pub mod jsonpath;
pub mod labels;
pub mod names;
pub mod patch;
pub mod pattern;
pub mod pod;
pub mod pod_security;
pub mod print;
pub mod protobuf;
pub mod quantity;
pub mod quota;
pub mod random;
pub mod resource;
pub mod schema;
pub mod service;
pub mod status;
pub mod typed;
pub mod validation;
pub mod value;

pub use quantity::Quantity;
pub use resource::Resource;
pub use schema::Schema;
pub use status::Status;
