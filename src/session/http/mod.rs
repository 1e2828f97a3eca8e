//! HTTP/1.1: requests are parsed and routed, and responses are written in order, on a connection that is kept.
//!
//! The states of a connection are [`head`], [`body`] and [`responding`]; [`connection`] feeds its input to them. An
//! `Exchange` is one request being answered: [`dispatch`] checks it and calls the handler of its route. Handlers return
//! an `Outcome`, or an [`response::HttpError`] that the exchange turns into the response.

pub mod body;
pub mod chunked;
pub mod connection;
pub mod cors;
pub mod dispatch;
mod exchange;
pub mod extensions;
mod forwarded;
mod handlers;
pub mod head;
pub(super) mod last_response;
mod publish;
pub mod query;
pub mod rejected;
pub mod request;
pub mod responding;
pub mod response;
pub mod routes;
pub mod upgrade;
