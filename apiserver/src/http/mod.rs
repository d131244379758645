//! HTTP: what a request asks for, and what an answer looks like. Nothing here knows a resource.

pub mod body;
pub mod continuation;
pub mod encode;
pub mod gzip;
pub mod info;
pub(crate) mod limits;
pub mod negotiate;
pub mod query;
pub mod serve;
pub(crate) mod turns;
pub mod yaml;
