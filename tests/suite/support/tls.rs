//! TLS in front of a server that speaks none.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{ServerConfig, ServerConnection};

/// A certificate for localhost and its address, in a file that is removed when this is dropped.
pub struct Terminator {
    pub address: SocketAddr,
    certificate: PathBuf,
}

impl Terminator {
    /// Accepts TLS, and relays what is in it to a server.
    pub fn start(server: SocketAddr) -> Terminator {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into())
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let certificate = std::env::temp_dir().join(format!("oyez-tls-{}.pem", address.port()));
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let session = ServerConnection::new(config.clone()).unwrap();
                let server = TcpStream::connect(server).unwrap();
                relay(client, server, session);
            }
        });
        Terminator { address, certificate }
    }

    /// Its certificate, as PEM.
    pub fn certificate(&self) -> &Path {
        &self.certificate
    }
}

impl Drop for Terminator {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.certificate);
    }
}

/// A thread for each direction; the session is locked for no read from a socket.
fn relay(client: TcpStream, server: TcpStream, session: ServerConnection) {
    let session = Arc::new(Mutex::new(session));
    let (other_client, other_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let other_session = session.clone();
    thread::spawn(move || {
        let _ = inwards(&client, &server, &session);
        let _ = server.shutdown(Shutdown::Both);
        let _ = client.shutdown(Shutdown::Both);
    });
    thread::spawn(move || {
        let _ = outwards(&other_server, &other_client, &other_session);
        let _ = other_server.shutdown(Shutdown::Both);
        let _ = other_client.shutdown(Shutdown::Both);
    });
}

fn inwards(
    mut client: &TcpStream,
    mut server: &TcpStream,
    session: &Mutex<ServerConnection>,
) -> std::io::Result<()> {
    let mut ciphertext = [0; 4096];
    loop {
        let count = client.read(&mut ciphertext)?;
        if count == 0 {
            return Ok(());
        }
        let mut plaintext = Vec::new();
        {
            let mut session = session.lock().unwrap();
            let mut rest = &ciphertext[..count];
            while !rest.is_empty() {
                session.read_tls(&mut rest)?;
                let processed = session.process_new_packets().map_err(std::io::Error::other);
                // "Would block" is the end of what there is.
                let _ = session.reader().read_to_end(&mut plaintext);
                while session.wants_write() {
                    session.write_tls(&mut client)?;
                }
                processed?;
            }
        }
        server.write_all(&plaintext)?;
    }
}

fn outwards(
    mut server: &TcpStream,
    mut client: &TcpStream,
    session: &Mutex<ServerConnection>,
) -> std::io::Result<()> {
    let mut plaintext = [0; 16 << 10];
    loop {
        let count = server.read(&mut plaintext)?;
        let mut session = session.lock().unwrap();
        if count == 0 {
            session.send_close_notify();
        }
        session.writer().write_all(&plaintext[..count])?;
        while session.wants_write() {
            session.write_tls(&mut client)?;
        }
        if count == 0 {
            return Ok(());
        }
    }
}
