//! The manual: one page for each subject, as Markdown files that can also be read in the repository.
//!
//! - Tutorials: [`getting_started`].
//! - For clients: [`protocol`], [`http_api`], [`client_library`], [`command_line`].
//! - For operators: [`security`], [`flags`], [`limits`], [`monitoring`], [`history_file`], [`several_nodes`], [`tls`],
//!   [`proxies`], [`service`], [`compression`], [`benchmarking`], [`builds`].
//! - For students of the source: [`event_loop`].
//!
//! Links between pages are references (`[text][label]`). Each file defines its labels as paths, for readers of the
//! repository; the definitions here precede them, and therefore win in rustdoc, which checks their targets.

macro_rules! pages {
    ($($page:ident $file:literal)*) => {
        $(
            #[doc = include_str!("links.in")]
            #[doc = ""]
            #[doc = include_str!($file)]
            pub mod $page {}
        )*
    };
}

pages! {
    getting_started "getting_started.md"
    protocol "protocol.md"
    http_api "http_api.md"
    client_library "client_library.md"
    command_line "command_line.md"
    security "security.md"
    flags "flags.md"
    limits "limits.md"
    monitoring "monitoring.md"
    history_file "history_file.md"
    several_nodes "several_nodes.md"
    tls "tls.md"
    proxies "proxies.md"
    service "service.md"
    compression "compression.md"
    benchmarking "benchmarking.md"
    builds "builds.md"
    event_loop "event_loop.md"
}
