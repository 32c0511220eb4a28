//! Whom to talk to: a loopback TCP or UDP address or a UNIX socket, and the stream to it.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;
use tideloop_sys::socket::RawSource;

#[cfg(unix)]
use std::os::unix::net::UnixStream;

#[cfg(feature = "tls")]
use crate::tls::Tls;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub enum Target {
    Tcp(SocketAddr),
    Udp(SocketAddr),
    #[cfg(unix)]
    Unix(std::path::PathBuf),
}

impl Target {
    pub fn tcp(host: &str, port: u16) -> Result<Self, String> {
        Self::loopback(host, port).map(Self::Tcp)
    }

    pub fn udp(host: &str, port: u16) -> Result<Self, String> {
        Self::loopback(host, port).map(Self::Udp)
    }

    /// Refuses whatever is not loopback: this is a measuring device, not a weapon.
    fn loopback(host: &str, port: u16) -> Result<SocketAddr, String> {
        let address = match host {
            "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
            _ => host.parse().map_err(|_| {
                format!("--host is '{host}'; expected a loopback address such as 127.0.0.1 or ::1")
            })?,
        };
        if !address.is_loopback() {
            return Err(format!(
                "--host is '{host}', which is not a loopback address; tideloop-load only measures servers of this machine"
            ));
        }
        Ok(SocketAddr::new(address, port))
    }

    #[cfg(unix)]
    pub fn unix(path: &str) -> Result<Self, String> {
        Ok(Self::Unix(path.into()))
    }

    #[cfg(not(unix))]
    pub fn unix(path: &str) -> Result<Self, String> {
        Err(format!(
            "--unix is '{path}', but this system has no UNIX sockets here; use --port"
        ))
    }

    pub fn is_datagram(&self) -> bool {
        matches!(self, Self::Udp(_))
    }

    /// A connected, non-blocking stream; with `tls`, one that has shaken hands.
    pub fn connect(&self, tls: bool) -> io::Result<Stream> {
        let stream = match tls {
            true => self.open()?.encrypted()?,
            false => self.open()?,
        };
        match &stream {
            Stream::Tcp(stream) => stream.set_nonblocking(true)?,
            Stream::Udp(socket) => socket.set_nonblocking(true)?,
            #[cfg(feature = "tls")]
            Stream::Tls(stream) => stream.below().set_nonblocking(true)?,
            #[cfg(unix)]
            Stream::Unix(stream) => stream.set_nonblocking(true)?,
        }
        Ok(stream)
    }

    /// A connected stream whose reads block, but not for longer than `limit`.
    pub fn connect_blocking(&self, limit: Duration) -> io::Result<Stream> {
        let stream = self.open()?;
        match &stream {
            Stream::Tcp(stream) => stream.set_read_timeout(Some(limit))?,
            Stream::Udp(socket) => socket.set_read_timeout(Some(limit))?,
            #[cfg(feature = "tls")]
            Stream::Tls(stream) => stream.below().set_read_timeout(Some(limit))?,
            #[cfg(unix)]
            Stream::Unix(stream) => stream.set_read_timeout(Some(limit))?,
        }
        Ok(stream)
    }

    fn open(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, CONNECT_TIMEOUT)?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
            Self::Udp(address) => {
                let socket = UdpSocket::bind(match address {
                    SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
                    SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::LOCALHOST, 0)),
                })?;
                socket.connect(address)?;
                Ok(Stream::Udp(socket))
            }
            #[cfg(unix)]
            Self::Unix(path) => UnixStream::connect(path).map(Stream::Unix),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) | Self::Udp(address) => address.fmt(f),
            #[cfg(unix)]
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

#[derive(Debug)]
pub enum Stream {
    Tcp(TcpStream),
    /// No stream: each write is a datagram, and so is what each read gets.
    Udp(UdpSocket),
    #[cfg(feature = "tls")]
    Tls(Box<Tls>),
    #[cfg(unix)]
    Unix(UnixStream),
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(into),
            Self::Udp(socket) => socket.recv(into),
            #[cfg(feature = "tls")]
            Self::Tls(stream) => stream.read(into),
            #[cfg(unix)]
            Self::Unix(stream) => stream.read(into),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(from),
            Self::Udp(socket) => socket.send(from),
            #[cfg(feature = "tls")]
            Self::Tls(stream) => stream.write(from),
            #[cfg(unix)]
            Self::Unix(stream) => stream.write(from),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream {
    /// The same stream under TLS, after the handshake.
    #[cfg(feature = "tls")]
    fn encrypted(self) -> io::Result<Self> {
        match self {
            Self::Tcp(stream) => Tls::connect(stream).map(|tls| Self::Tls(Box::new(tls))),
            other => Ok(other),
        }
    }

    #[cfg(not(feature = "tls"))]
    fn encrypted(self) -> io::Result<Self> {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "--tls was asked for, but this tideloop-load is built without it (cargo: --features tls)",
        ))
    }

    /// Whether an answer comes whole or not at all.
    pub fn is_datagram(&self) -> bool {
        matches!(self, Self::Udp(_))
    }

    /// Whether bytes that were taken wait until the socket takes them.
    pub fn is_sending(&self) -> bool {
        match self {
            #[cfg(feature = "tls")]
            Self::Tls(stream) => stream.is_sending(),
            _ => false,
        }
    }

    /// The descriptor, for the selector.
    pub fn raw(&self) -> RawSource {
        #[cfg(unix)]
        {
            use std::os::fd::AsRawFd;
            match self {
                Self::Tcp(stream) => stream.as_raw_fd(),
                Self::Udp(socket) => socket.as_raw_fd(),
                #[cfg(feature = "tls")]
                Self::Tls(stream) => stream.below().as_raw_fd(),
                Self::Unix(stream) => stream.as_raw_fd(),
            }
        }
        #[cfg(windows)]
        {
            use std::os::windows::io::AsRawSocket;
            match self {
                Self::Tcp(stream) => stream.as_raw_socket(),
                Self::Udp(socket) => socket.as_raw_socket(),
                #[cfg(feature = "tls")]
                Self::Tls(stream) => stream.below().as_raw_socket(),
            }
        }
    }
}
