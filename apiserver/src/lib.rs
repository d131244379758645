//! The Kubernetes API over a store.
//!
//! A request comes in through [`Server::handle`], be it from a TLS connection ([`http::serve`]) or from a component in
//! this process, and goes: who asks (`auth`), may they, what is it (`http::info`), the verb (`verbs`), which decodes by
//! the resource's schema, lets `admission` and the kind's `strategy` act, and commits to the store. Answers are spliced
//! from the bytes that the `cache` holds.

mod admission;
mod aggregate;
mod audit;
pub mod auth;
mod bootstrap;
pub mod cache;
mod convert;
mod custom;
pub mod dial;
mod encryption;
mod expiry;
mod flow;
pub mod http;
mod identity;
mod metrics;
pub mod options;
mod publish;
mod registry;
mod request;
mod server;
mod services;
mod signer;
mod strategy;
mod subresources;
mod tls;
mod verbs;
mod webhook;

pub use server::{Config, Error, Server};
