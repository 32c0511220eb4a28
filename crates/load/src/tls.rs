//! The client end of TLS 1.3, for measuring servers that encrypt.
//!
//! Whose certificate it is does not matter here: the target is a loopback address, and what is sent is noise. So the
//! certificate is not verified, and this is not fit for anything else.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, version,
};

/// Encrypted bytes that wait for the socket before no more are taken.
const MAX_UNSENT: usize = 256 * 1024;

/// One encrypted connection.
#[derive(Debug)]
pub struct Tls {
    session: ClientConnection,
    below: TcpStream,
}

impl Tls {
    /// Shakes hands on a stream that blocks.
    pub fn connect(mut below: TcpStream) -> io::Result<Self> {
        let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
        let mut session = ClientConnection::new(config()?, name).map_err(io::Error::other)?;
        session.set_buffer_limit(Some(MAX_UNSENT));
        while session.is_handshaking() {
            session.complete_io(&mut below)?;
        }
        Ok(Self { session, below })
    }

    pub fn below(&self) -> &TcpStream {
        &self.below
    }

    /// Whether encrypted bytes wait until the socket takes them.
    pub fn is_sending(&self) -> bool {
        self.session.wants_write()
    }

    fn send(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut self.below) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Read for Tls {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.send()?;
        let received = self.session.read_tls(&mut self.below)?;
        self.session
            .process_new_packets()
            .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        match self.session.reader().read(into) {
            // A part of a record.
            Err(error) if error.kind() == ErrorKind::WouldBlock && received == 0 => Ok(0),
            read => read,
        }
    }
}

impl Write for Tls {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.send()?;
        let written = self.session.writer().write(from)?;
        self.send()?;
        match written {
            0 => Err(ErrorKind::WouldBlock.into()),
            _ => Ok(written),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        self.session.send_close_notify();
        // A server that is gone needs no farewell.
        self.send().ok();
    }
}

fn config() -> io::Result<Arc<ClientConfig>> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(Arc::clone(config));
    }
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&version::TLS13])
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    Ok(Arc::clone(CONFIG.get_or_init(|| Arc::new(config))))
}

/// Takes every certificate; whoever shows it must have its key.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
