//! TLS for tests: certificates, and relays between TLS and plain connections.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::DerefMut;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::{
    ClientConfig, ClientConnection, ConnectionCommon, RootCertStore, ServerConfig, ServerConnection,
};
use rustls::{SideData, SupportedProtocolVersion};

use super::folder::Folder;
use super::process::TEST_TIMEOUT;

/// The kernel's buffers of a relay: more than a segment of the loopback interface.
const BUFFER_BYTES: usize = 128 << 10;

/// A certificate for localhost and its address with its key, in files that are removed when this is dropped.
pub struct Identity {
    folder: Folder,
    leaf: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Identity {
    /// Signed by itself.
    pub fn new() -> Identity {
        Identity::with(|_| {})
    }

    /// Signed by itself, and changed.
    pub fn with(change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let mut params = params();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let identity = Identity::of(certificate.der().clone(), &key);
        identity.write(&certificate.pem(), &key.serialize_pem());
        identity
    }

    /// Signed by an authority that was signed by another, which is the one to be trusted.
    pub fn chained() -> Identity {
        let authority = |name: &str| {
            let mut params = CertificateParams::new([name.to_owned()]).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params
        };
        let root = CertifiedIssuer::self_signed(authority("root"), KeyPair::generate().unwrap()).unwrap();
        let middle_key = KeyPair::generate().unwrap();
        let middle = authority("middle").signed_by(&middle_key, &root).unwrap();
        let issuer = Issuer::new(authority("middle"), middle_key);
        let key = KeyPair::generate().unwrap();
        let leaf = params().signed_by(&key, &issuer).unwrap();
        let identity = Identity::of(leaf.der().clone(), &key);
        identity.write(&format!("{}{}", leaf.pem(), middle.pem()), &key.serialize_pem());
        std::fs::write(identity.folder.join("root.pem"), root.pem()).unwrap();
        identity
    }

    fn of(leaf: CertificateDer<'static>, key: &KeyPair) -> Identity {
        Identity::in_folder(leaf, key.serialize_der())
    }

    fn in_folder(leaf: CertificateDer<'static>, key: Vec<u8>) -> Identity {
        Identity { folder: Folder::new(), leaf, key }
    }

    /// The same certificate in separate files.
    pub fn copy(other: &Identity) -> Identity {
        let copy = Identity::in_folder(other.leaf.clone(), other.key.clone());
        copy.replace_with(other);
        copy
    }

    /// Puts other texts into its files.
    pub fn write(&self, certificate: &str, key: &str) {
        std::fs::write(self.certificate(), certificate).unwrap();
        std::fs::write(self.key(), key).unwrap();
    }

    /// Replaces its files with those of another.
    pub fn replace_with(&self, other: &Identity) {
        std::fs::copy(other.certificate(), self.certificate()).unwrap();
        std::fs::copy(other.key(), self.key()).unwrap();
    }

    /// The file with its certificate, as PEM.
    pub fn certificate(&self) -> PathBuf {
        self.folder.join("certificate.pem")
    }

    /// The file with its key.
    pub fn key(&self) -> PathBuf {
        self.folder.join("key.pem")
    }

    /// The file with the authority of a chained one.
    pub fn root(&self) -> PathBuf {
        self.folder.join("root.pem")
    }

    /// A file in the same folder, removed with it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The flags that make `oyez serve` use it.
    pub fn flags(&self) -> Vec<String> {
        vec![
            format!("--tls-cert={}", self.certificate().display()),
            format!("--tls-key={}", self.key().display()),
        ]
    }

    /// A server's configuration.
    pub fn server(&self) -> ServerConfig {
        let key = PrivatePkcs8KeyDer::from(self.key.clone());
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![self.leaf.clone()], key.into())
            .unwrap();
        config.send_tls13_tickets = 1;
        config
    }

    /// The configuration of a client that trusts only this certificate.
    pub fn client(&self, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.leaf.clone()).unwrap();
        let mut config = ClientConfig::builder_with_protocol_versions(versions)
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config
    }
}

fn params() -> CertificateParams {
    let mut params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "localhost");
    params
}

/// TLS in front of a server without TLS.
pub struct Terminator {
    pub address: SocketAddr,
    certificate: PathBuf,
    _identity: Identity,
}

impl Terminator {
    /// Accepts TLS, and relays its content to a server.
    pub fn start(server: SocketAddr) -> Terminator {
        let identity = Identity::new();
        let config = Arc::new(identity.server());
        let address = listen(move |client| {
            let session = ServerConnection::new(config.clone()).unwrap();
            relay(client, TcpStream::connect(server).unwrap(), session);
        });
        Terminator { address, certificate: identity.certificate(), _identity: identity }
    }

    /// Its certificate, as PEM.
    pub fn certificate(&self) -> &Path {
        &self.certificate
    }
}

/// A plain port in front of a server with TLS, so that a test without TLS can run against that server too.
pub struct Tunnel {
    pub address: SocketAddr,
    _identity: Identity,
}

impl Tunnel {
    /// Accepts plain connections, and relays their bytes over TLS to a server.
    pub fn start(server: SocketAddr, identity: Identity) -> Tunnel {
        let config = Arc::new(identity.client(rustls::ALL_VERSIONS));
        let address = listen(move |client| {
            let session = ClientConnection::new(config.clone(), "localhost".try_into().unwrap()).unwrap();
            if let Ok(server) = TcpStream::connect(server) {
                relay(server, client, session);
            }
        });
        Tunnel { address, _identity: identity }
    }
}

impl Tunnel {
    /// A connection without any bytes.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TEST_TIMEOUT)).unwrap();
        stream
    }
}

/// Returns true if the suite runs over TLS.
pub fn is_enabled_for_suite() -> bool {
    std::env::var_os("OYEZ_SUITE_TLS").is_some()
}

fn listen(mut serve: impl FnMut(TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || listener.incoming().map_while(Result::ok).for_each(&mut serve));
    address
}

/// A thread for each direction; the session is locked for no read from a socket.
fn relay<C, D>(secure: TcpStream, plain: TcpStream, mut session: C)
where
    C: DerefMut<Target = ConnectionCommon<D>> + Send + 'static,
    D: SideData,
{
    secure.set_nodelay(true).unwrap();
    plain.set_nodelay(true).unwrap();
    // A test whose client does not read is about the server's buffers: those on the way have to be small.
    socket2::SockRef::from(&secure).set_recv_buffer_size(BUFFER_BYTES).unwrap();
    socket2::SockRef::from(&plain).set_send_buffer_size(BUFFER_BYTES).unwrap();
    session.set_buffer_limit(None);
    thread::spawn(move || {
        // Before there are keys, an end of file could only be passed on as an alert in the clear.
        while session.is_handshaking() {
            if session.complete_io(&mut &secure).is_err() {
                return finish(Err(io::ErrorKind::ConnectionReset.into()), &secure, &plain, &plain);
            }
        }
        let session = Mutex::new(session);
        thread::scope(|scope| {
            scope.spawn(|| finish(encrypt(&plain, &secure, &session), &secure, &plain, &secure));
            finish(decrypt(&secure, &plain, &session), &secure, &plain, &plain);
        });
    });
}

/// Passes on how a direction ended: an end of file as an end of file, anything else as a reset.
fn finish(result: io::Result<()>, secure: &TcpStream, plain: &TcpStream, to: &TcpStream) {
    if result.is_ok() {
        let _ = to.shutdown(Shutdown::Write);
        return;
    }
    for socket in [secure, plain] {
        let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
        let _ = socket.shutdown(Shutdown::Read);
    }
}

fn flush<D: SideData>(session: &mut ConnectionCommon<D>, mut to: &TcpStream) -> io::Result<()> {
    while session.wants_write() {
        session.write_tls(&mut to)?;
    }
    Ok(())
}

fn decrypt<C, D>(mut secure: &TcpStream, mut plain: &TcpStream, session: &Mutex<C>) -> io::Result<()>
where
    C: DerefMut<Target = ConnectionCommon<D>>,
    D: SideData,
{
    let mut ciphertext = [0; 16 << 10];
    let mut came = 0;
    loop {
        let mut plaintext = Vec::new();
        let mut has_ended = false;
        {
            let mut session = session.lock().unwrap();
            let mut rest = &ciphertext[..came];
            loop {
                // First the bytes that arrived with the handshake. "Would block" is the end of the available bytes.
                let _ = session.reader().read_to_end(&mut plaintext);
                if rest.is_empty() || has_ended {
                    break;
                }
                session.read_tls(&mut rest)?;
                let processed = session.process_new_packets().map_err(io::Error::other);
                flush(&mut session, secure)?;
                has_ended = processed?.peer_has_closed();
            }
        }
        plain.write_all(&plaintext)?;
        if has_ended {
            return Ok(());
        }
        came = secure.read(&mut ciphertext)?;
        if came == 0 {
            return Ok(());
        }
    }
}

fn encrypt<C, D>(mut plain: &TcpStream, secure: &TcpStream, session: &Mutex<C>) -> io::Result<()>
where
    C: DerefMut<Target = ConnectionCommon<D>>,
    D: SideData,
{
    flush(&mut session.lock().unwrap(), secure)?;
    let mut plaintext = [0; 16 << 10];
    loop {
        let count = plain.read(&mut plaintext)?;
        let mut session = session.lock().unwrap();
        if count == 0 {
            session.send_close_notify();
        }
        session.writer().write_all(&plaintext[..count])?;
        flush(&mut session, secure)?;
        if count == 0 {
            return Ok(());
        }
    }
}
