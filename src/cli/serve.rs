//! `oyez serve`: runs the server with the configuration that its flags make.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{SystemTime, UNIX_EPOCH};

use log::{info, warn};

use super::failure::Failure;
use super::key_files::read_metrics_token;
use super::listen_flag;
use super::memory;
use super::output;
use super::parent;
use super::serve_flags::ServeFlags;
use super::service_manager;
use super::upgrade;
use crate::access::connection_limiter::Proxies;
use crate::access::metrics_token::MetricsToken;
use crate::config::{Config, Limits, ListenAddress};
use crate::net::acceptor::{Acceptor, Plain};
use crate::net::inherited_socket::InheritedSocket;
use crate::net::listeners::ListenError;
use crate::net::tls::Tls;
use crate::server::memory::AllocatedBytes;
use crate::server::{AccessConfig, DESCRIPTORS_RESERVED, ReloadedFiles, Server, ServerExit, StartError};
use crate::session::http::response::HttpError;

/// Runs the server. `listens_by_default` is true if `--listen` is not given.
pub(super) fn run(
    flags: &ServeFlags,
    listens_by_default: bool,
    allocated_bytes: AllocatedBytes,
) -> Result<(), Failure> {
    let sockets = service_manager::take_sockets()?;
    if let Some(parent) = flags.end_with_parent {
        parent::end_with_parent(parent).map_err(|error| Failure::Failed(error.to_string()))?;
    }
    let mut config = flags.config();
    config.listen = listen_flag::join(&flags.listen)?;
    if listens_by_default && !sockets.is_empty() {
        config.listen.clear();
    }
    config.command = std::env::args_os().collect();
    config.service_manager = service_manager::config();
    let memory = resolve_memory(flags, &mut config.limits);
    config.limits.check().map_err(|why| match why.to_string() {
        // A default: the error names the limit that it was derived from.
        why if flags.memory_max.is_none() && why.contains("--memory-max") => {
            Failure::Usage(format!("{why}; {memory}"))
        }
        why => Failure::Usage(why),
    })?;
    config.backplane = flags.backplane.config(&config.limits)?;
    flags.check_combinations(&config)?;
    let proxies = Proxies { networks: flags.trusted_proxies.clone(), send_header: flags.proxy_protocol };
    let further = sockets.iter().filter(|socket| !config.listen.iter().any(|address| socket.serves(address)));
    let addresses: Vec<ListenAddress> =
        config.listen.iter().chain(further.map(|socket| &socket.address)).cloned().collect();
    let (authenticator, who_may) = flags.auth.authenticator(&addresses)?;
    let (connections_max, descriptors) = connections_max(config.connections_max, addresses.len())?;
    let facts = vec![who_may, descriptors, memory];
    let uncompressed = flags.deflate.excluded()?;
    let metrics_token = metrics_token(flags)?;
    let access_config =
        AccessConfig { origins: flags.origins.clone(), proxies, authenticator, uncompressed, metrics_token };
    let read_files = || ReloadedFiles {
        verifier: flags.auth.verifier().map_err(|why| why.to_string()),
        metrics_token: self::metrics_token(flags).map_err(|why| why.to_string()),
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let load = |files| Tls::load(files, &config.tls, HttpError::tls_expected, now).map_err(Failure::Failed);
    let tls = config.tls.files.clone().map(load).transpose()?;
    if flags.check {
        return output::print("the configuration is valid\n");
    }
    let startup = Startup { config, access_config, sockets, connections_max, facts };
    match tls {
        None => startup.serve(Plain, read_files, allocated_bytes),
        Some(tls) => startup.serve(tls, read_files, allocated_bytes),
    }
}

/// Reads the token that `/metrics` requires, as its file is now.
fn metrics_token(flags: &ServeFlags) -> Result<Option<MetricsToken>, Failure> {
    flags.metrics_token_file.as_deref().map(read_metrics_token).transpose()
}

/// Determines the memory budget and the part of it that histories may use. Returns both as a line for the log.
fn resolve_memory(flags: &ServeFlags, limits: &mut Limits) -> String {
    let (bytes_max, source) = match flags.memory_max {
        Some(bytes_max) => (bytes_max, "--memory-max".to_owned()),
        None => match memory::limit_of_process() {
            Some(limit) => (limit.bytes / 2, format!("half of {} bytes in {}", limit.bytes, limit.source)),
            None => (0, "the system does not report the size of its memory".to_owned()),
        },
    };
    limits.memory_bytes_max = bytes_max;
    if flags.history_total_bytes_max.is_none() && bytes_max > 0 {
        let share = usize::try_from(bytes_max / 2).unwrap_or(usize::MAX);
        limits.history.total_bytes_max = limits.history.total_bytes_max.min(share);
    }
    let history = limits.history.total_bytes_max;
    format!("memory_max={bytes_max} ({source}), history_total_bytes_max={history}")
}

/// A valid configuration, and the other parts of a server.
struct Startup {
    config: Config,
    access_config: AccessConfig,
    /// The listening sockets that the process inherited.
    sockets: Vec<InheritedSocket>,
    connections_max: usize,
    /// Lines for the log. They are logged once the server listens, so that an error at start is not hidden among them.
    facts: Vec<String>,
}

impl Startup {
    /// Runs a server with one kind of acceptor, until a signal ends it.
    fn serve<E: Acceptor>(
        self,
        acceptor: E,
        read_files: impl FnMut() -> ReloadedFiles,
        allocated_bytes: AllocatedBytes,
    ) -> Result<(), Failure> {
        let Startup { config, access_config, sockets, connections_max, facts } = self;
        let (reuse_port, command) = (config.tcp.reuse_port, config.command.clone());
        let scheme = if config.tls.files.is_some() { "wss" } else { "ws" };
        let needs_token = access_config.authenticator.requires_token();
        // The first count starts the thread that returns pages to the system. Loading a history frees many pages, and
        // the first client may connect much later.
        let _ = allocated_bytes();
        let mut server =
            Server::bind(config, access_config, sockets, connections_max, acceptor).map_err(|error| {
                match error {
                    StartError::Listen(error) => {
                        Failure::Failed(format!("{error}{}", advice(&error, reuse_port)))
                    }
                    error => Failure::Failed(error.to_string()),
                }
            })?;
        facts.iter().for_each(|fact| info!("{fact}"));
        // The server runs even if these lines cannot be written, for instance on a full disk.
        if let Err(Failure::Failed(why)) = output::print(greeting(scheme, &server.addresses(), needs_token)) {
            warn!("{why}");
        }
        match server.run(read_files, allocated_bytes) {
            Ok(ServerExit::Drained) => Ok(()),
            Ok(ServerExit::Replaced) => Err(upgrade::execute(&command, server.take_sockets())),
            Ok(ServerExit::HistoryIncomplete) => {
                Err(Failure::Failed("exited with an incomplete history file".into()))
            }
            Ok(ServerExit::BackplaneRejected(why)) => Err(Failure::Failed(why)),
            Ok(ServerExit::Forced) => Err(Failure::Failed("a second signal ended the drain early".into())),
            Err(error) => Err(Failure::Failed(format!("the poll failed: {error}"))),
        }
    }
}

/// Raises the descriptor limit as far as possible, and computes the maximum number of connections of a server with this
/// many listeners. Returns it with a line for the log.
fn connections_max(wanted: Option<usize>, listeners: usize) -> Result<(usize, String), Failure> {
    let reserved = DESCRIPTORS_RESERVED + listeners.saturating_sub(1);
    let failed = |error: io::Error| Failure::Failed(format!("cannot read the descriptor limit: {error}"));
    let (soft, hard) = rlimit::getrlimit(rlimit::Resource::NOFILE).map_err(failed)?;
    let limit = rlimit::increase_nofile_limit(u64::MAX).unwrap_or(soft);
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let room = limit.saturating_sub(reserved).min(u32::MAX as usize / 2);
    let advice = "raise the hard limit (`ulimit -Hn`, LimitNOFILE= in a systemd unit)";
    let connections_max = match wanted {
        Some(wanted) if wanted > room => {
            return Err(Failure::Usage(format!(
                "--connections-max {wanted} needs {} descriptors and the limit is {limit}: lower it, or {advice}",
                wanted.saturating_add(reserved)
            )));
        }
        Some(wanted) => wanted,
        None if room == 0 => {
            return Err(Failure::Failed(format!(
                "the descriptor limit of {limit} leaves no connections after the {reserved} that the server reserves: {advice}"
            )));
        }
        None => room,
    };
    let fact = format!("descriptors soft={soft} hard={hard} now={limit}, connections_max={connections_max}");
    Ok((connections_max, fact))
}

/// A line for each address, the first one with the commands to try next. `needs_token`: anonymous clients have no
/// rights.
fn greeting(scheme: &str, addresses: &[ListenAddress], needs_token: bool) -> String {
    let token = if needs_token { " --token-file FILE" } else { "" };
    let lines = addresses.iter().enumerate().map(|(at, address)| {
        let listening = match address {
            ListenAddress::Tcp(address) => format!("listening on {scheme}://{address}/ws"),
            ListenAddress::Unix { .. } => format!("listening on {address}"),
        };
        if at > 0 {
            return listening + "\n";
        }
        let url = match url_of(scheme, address) {
            Some(url) => format!(" --url {url}"),
            None => String::new(),
        };
        format!(
            "{listening} - try: oyez sub main{url}{token}; and in another terminal: oyez pub main hello{url}{token}\n"
        )
    });
    lines.collect()
}

/// The URL of an address, for clients on this machine; `None` for the default of `--url`.
fn url_of(scheme: &str, address: &ListenAddress) -> Option<String> {
    let ListenAddress::Tcp(address) = address else { return Some(address.to_string()) };
    // Clients cannot connect to an unspecified address.
    let host = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    let reached = SocketAddr::new(host, address.port());
    let is_default = scheme == "ws" && Config::default().listen == [ListenAddress::Tcp(reached)];
    (!is_default).then(|| format!("{scheme}://{reached}"))
}

fn advice(ListenError { address, error }: &ListenError, reuse_port: bool) -> &'static str {
    match (address, error.kind()) {
        (ListenAddress::Unix { .. }, io::ErrorKind::AddrInUse) => {
            " (another process listens on it; stop that process, or choose another path)"
        }
        (ListenAddress::Unix { .. }, io::ErrorKind::NotFound) => " (create its directory first)",
        (ListenAddress::Unix { .. }, io::ErrorKind::PermissionDenied) => {
            " (the server must be allowed to create files in its directory)"
        }
        (_, io::ErrorKind::AddrInUse) if reuse_port => {
            " (another server uses it without --reuse-port, or as another user: all processes on a port need the flag and \
             run as one user)"
        }
        (_, io::ErrorKind::AddrInUse) => {
            " (another server uses it, or all ports are in use; choose another with --listen, port 0 picks a free one; \
             several servers share a port if all have --reuse-port)"
        }
        (_, io::ErrorKind::AddrNotAvailable) => " (no interface of this machine has this address)",
        (ListenAddress::Tcp(_), io::ErrorKind::PermissionDenied) => " (ports below 1024 need a privilege)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greeting_contains_commands_that_work() {
        let check = |scheme: &str, address: &str, url: &str| {
            let line = greeting(scheme, &[ListenAddress::Tcp(address.parse().unwrap())], false);
            assert!(line.starts_with(&format!("listening on {scheme}://{address}/ws ")), "{line}");
            assert!(line.ends_with(&format!("oyez pub main hello{url}\n")), "{line}");
        };
        let unix = ListenAddress::Unix { path: "/run/oyez.sock".into(), mode: None };
        let with_token = greeting("ws", std::slice::from_ref(&unix), true);
        assert!(with_token.ends_with(" hello --url unix:/run/oyez.sock --token-file FILE\n"), "{with_token}");
        let lines = greeting("ws", &[unix.clone(), unix], false);
        assert!(
            lines.ends_with(" hello --url unix:/run/oyez.sock\nlistening on unix:/run/oyez.sock\n"),
            "{lines}"
        );
        check("ws", "127.0.0.1:8080", "");
        check("ws", "0.0.0.0:8080", "");
        check("ws", "127.0.0.1:9", " --url ws://127.0.0.1:9");
        check("ws", "[::]:9", " --url ws://[::1]:9");
        check("wss", "127.0.0.1:8080", " --url wss://127.0.0.1:8080");
    }
}
