//! `oyez health`: a health check for containers and scripts. The exit status is 0 if the server responds with 200.
//!
//! Container images without a shell have no curl either.

use clap::Args;

use super::failure::Failure;
use super::output;
use super::trust::TrustFlags;
use crate::client::endpoint::Endpoint;
use crate::client::error_response;
use crate::client::http_request;

/// The flags of `oyez health`.
#[derive(Debug, Args)]
pub(super) struct HealthCommand {
    /// Check that the server is ready for clients (/readyz), and not only that it runs (/healthz).
    #[arg(long)]
    ready: bool,

    /// URL of the server.
    #[arg(long, env = "OYEZ_URL", value_name = "URL", default_value = "ws://127.0.0.1:8080", value_parser = Endpoint::parse)]
    url: Endpoint,

    #[command(flatten)]
    trust: TrustFlags,
}

impl HealthCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let endpoint = self.trust.apply(self.url)?;
        let path = if self.ready { "/readyz" } else { "/healthz" };
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", endpoint.authority());
        let failed = |why: String| Failure::Failed(why);
        let response = http_request::send(&endpoint, request.as_bytes()).map_err(|error| match error {
            // The text names the server already.
            http_request::HttpRequestError::NotConnected(why) => failed(why),
            other => failed(format!("{endpoint}: {other}")),
        })?;
        if response.status != 200 {
            let why = error_response::describe(response.status, &response.body);
            return Err(failed(format!("{endpoint}: {path}: {why}")));
        }
        output::print(format_args!("{}\n", output::visible(response.body.trim_ascii_end())))
    }
}
