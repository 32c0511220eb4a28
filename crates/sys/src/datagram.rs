//! Datagrams: several received or sent by one system call, with their addresses.
//!
//! Linux takes batches (`recvmmsg`, `sendmmsg`); elsewhere, and in the tests of Linux, the same is done
//! one by one. A datagram is received whole or not at all: every slot has room for the largest one.
//!
//! The slots lie in one arena per loop. Its pages are only backed by memory once a datagram has been
//! written to them, so room for 32 of the largest costs little more than the datagrams that come. The
//! slots' distance is no power of two: datagrams are mostly small, and the beginnings of all slots would
//! otherwise share the same few lines of the processor's caches.

use std::io;

use crate::socket::{Address, SEND_FLAGS, Socket, tell};

/// Datagrams received, or sent, by one call.
pub const BATCH: usize = 32;

/// Room for any IP datagram.
pub const IP_ROOM: usize = 64 * 1024;

/// Room for a UNIX datagram, whose size only the sender's buffer limits: as much as asyncio takes.
pub const UNIX_ROOM: usize = 256 * 1024;

/// Added to a slot, so that slots do not begin a power of two apart.
const STAGGER: usize = 17 * 64;

/// An address to send to, as the system wants it.
#[derive(Debug, Clone)]
pub struct Name(Known);

#[derive(Debug, Clone)]
enum Known {
    /// The one that most have, in an eighth of the room that there must be for any: a name is moved more than once on
    /// its way out.
    #[cfg(target_os = "linux")]
    V4(libc::sockaddr_in),
    Any(Box<socket2::SockAddr>),
}

impl Name {
    /// None if it is no address that can be sent to: unnamed, too long, or of another family.
    pub fn new(address: &Address) -> Option<Self> {
        use std::net::{SocketAddr, SocketAddrV6};
        let name = match address {
            #[cfg(target_os = "linux")]
            Address::V4(address) => {
                return Some(Self(Known::V4(libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr {
                        s_addr: address.ip().to_bits().to_be(),
                    },
                    sin_zero: [0; 8],
                })));
            }
            #[cfg(not(target_os = "linux"))]
            Address::V4(address) => socket2::SockAddr::from(SocketAddr::V4(*address)),
            Address::V6(address) => socket2::SockAddr::from(SocketAddr::V6(SocketAddrV6::new(
                *address.ip(),
                address.port(),
                address.flowinfo().to_be(),
                address.scope_id(),
            ))),
            #[cfg(unix)]
            Address::Unix(path) if !path.is_empty() => {
                use std::os::unix::ffi::OsStrExt;
                socket2::SockAddr::unix(std::ffi::OsStr::from_bytes(path)).ok()?
            }
            _ => return None,
        };
        Some(Self(Known::Any(Box::new(name))))
    }

    /// Where the system reads it, and how long it is.
    #[cfg(target_os = "linux")]
    #[inline]
    fn raw(&self) -> (*const libc::sockaddr, libc::socklen_t) {
        match &self.0 {
            Known::V4(name) => (
                std::ptr::from_ref(name).cast(),
                size_of::<libc::sockaddr_in>() as libc::socklen_t,
            ),
            Known::Any(name) => (name.as_ptr().cast(), name.len()),
        }
    }
}

/// A datagram on its way out; without a name it goes to the socket's peer.
pub type Parcel<'a> = (&'a [u8], Option<&'a Name>);

/// Where datagrams are received into; one per loop.
#[derive(Debug, Default)]
pub struct Arrivals {
    arena: Vec<u8>,
}

impl Arrivals {
    /// Receives what waits, at most `ask` datagrams (and [`BATCH`]) of at most `room` bytes, and hands each to
    /// `each` with the address it came from, if it has one. Returns how many there were.
    ///
    /// An error is only returned if nothing was received; one that comes later is kept by the system for
    /// the next call.
    pub fn receive(
        &mut self,
        socket: &Socket,
        room: usize,
        ask: usize,
        each: impl FnMut(&[u8], Option<Address>),
    ) -> io::Result<usize> {
        let ask = self.prepare(room, ask);
        #[cfg(target_os = "linux")]
        if ask > 1 {
            return batch::receive(&mut self.arena, socket, room, ask, each);
        }
        one_by_one::receive(&mut self.arena, socket, room, ask, each)
    }

    /// [`Arrivals::receive`] as systems without batches do it.
    pub fn receive_one_by_one(
        &mut self,
        socket: &Socket,
        room: usize,
        each: impl FnMut(&[u8], Option<Address>),
    ) -> io::Result<usize> {
        self.prepare(room, BATCH);
        one_by_one::receive(&mut self.arena, socket, room, BATCH, each)
    }

    /// Makes room; for how many there is.
    fn prepare(&mut self, room: usize, ask: usize) -> usize {
        if self.arena.is_empty() {
            // Zeroed memory of this size comes from the system untouched.
            self.arena = vec![0; BATCH * (IP_ROOM + STAGGER)];
        }
        let slots = self.arena.len() / (room + STAGGER);
        ask.clamp(1, BATCH.min(slots))
    }
}

/// Sends datagrams in order, each whole. Returns how many went out; an error is only returned if the first
/// one failed.
pub fn send(socket: &Socket, parcels: &[Parcel<'_>]) -> io::Result<usize> {
    #[cfg(target_os = "linux")]
    return batch::send(socket, parcels);
    #[cfg(not(target_os = "linux"))]
    return send_one_by_one(socket, parcels);
}

/// [`send`] as systems without batches do it.
pub fn send_one_by_one(socket: &Socket, parcels: &[Parcel<'_>]) -> io::Result<usize> {
    for (sent, &(bytes, name)) in parcels.iter().enumerate() {
        match send_one(socket, bytes, name) {
            Ok(()) => {}
            Err(error) if sent == 0 => return Err(error),
            // The next call meets it first, if it is still there.
            Err(_) => return Ok(sent),
        }
    }
    Ok(parcels.len())
}

/// Sends one datagram, to `name` or else to the socket's peer.
#[cfg(target_os = "linux")]
#[inline]
pub fn send_one(socket: &Socket, bytes: &[u8], name: Option<&Name>) -> io::Result<()> {
    let (name, len) = name.map_or((std::ptr::null(), 0), Name::raw);
    // SAFETY: the bytes and the name, if there is one, are valid for reads of their lengths during the call.
    let sent = unsafe {
        libc::sendto(
            socket.raw(),
            bytes.as_ptr().cast(),
            bytes.len(),
            SEND_FLAGS,
            name,
            len,
        )
    };
    match sent {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends one datagram, to `name` or else to the socket's peer.
#[cfg(not(target_os = "linux"))]
pub fn send_one(socket: &Socket, bytes: &[u8], name: Option<&Name>) -> io::Result<()> {
    match name {
        Some(Name(Known::Any(name))) => socket.inner().send_to_with_flags(bytes, name, SEND_FLAGS),
        None => socket.inner().send_with_flags(bytes, SEND_FLAGS),
    }
    .map(drop)
}

mod one_by_one {
    use std::mem::MaybeUninit;

    use super::*;

    pub fn receive(
        arena: &mut [u8],
        socket: &Socket,
        room: usize,
        ask: usize,
        mut each: impl FnMut(&[u8], Option<Address>),
    ) -> io::Result<usize> {
        let slot = &mut arena[..room];
        for found in 0..ask {
            // SAFETY: the bytes are initialised, and a receive only writes initialised bytes to them.
            let buffer = unsafe {
                std::slice::from_raw_parts_mut(slot.as_mut_ptr().cast::<MaybeUninit<u8>>(), room)
            };
            // Somebody who shares the descriptor may have made it blocking, and may read faster.
            #[cfg(unix)]
            let received = socket
                .inner()
                .recv_from_with_flags(buffer, libc::MSG_DONTWAIT);
            #[cfg(not(unix))]
            let received = socket.inner().recv_from(buffer);
            match received {
                Ok((len, from)) => each(&slot[..len], named(&from)),
                Err(error) if found == 0 => return Err(error),
                // What is not "nothing more" is met again by the next call, or was a lost datagram's.
                Err(_) => return Ok(found),
            }
        }
        Ok(ask)
    }
}

/// An address that the system has filled in, if it has.
fn named(from: &socket2::SockAddr) -> Option<Address> {
    (from.len() > 0).then(|| tell(from))
}

#[cfg(target_os = "linux")]
mod batch {
    use std::mem::MaybeUninit;
    use std::ptr;

    use super::*;

    pub fn receive(
        arena: &mut [u8],
        socket: &Socket,
        room: usize,
        ask: usize,
        mut each: impl FnMut(&[u8], Option<Address>),
    ) -> io::Result<usize> {
        let mut names = [const { MaybeUninit::<libc::sockaddr_storage>::uninit() }; BATCH];
        let mut pieces = [const { MaybeUninit::<libc::iovec>::uninit() }; BATCH];
        let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; BATCH];
        for (index, slot) in arena.chunks_exact_mut(room + STAGGER).take(ask).enumerate() {
            let piece = pieces[index].write(libc::iovec {
                iov_base: slot.as_mut_ptr().cast(),
                iov_len: room,
            });
            headers[index].write(header(
                piece,
                names[index].as_mut_ptr(),
                size_of::<libc::sockaddr_storage>() as libc::socklen_t,
            ));
        }
        // SAFETY: the first `ask` headers are initialised and point to a name, a piece and a slot of the
        // arena that outlive the call; the arena has that many slots. No timeout is given.
        let found = unsafe {
            libc::recvmmsg(
                socket.raw(),
                headers.as_mut_ptr().cast(),
                ask as libc::c_uint,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        let found = usize::try_from(found).map_err(|_| io::Error::last_os_error())?;
        let slots = arena.chunks_exact(room + STAGGER);
        for ((header, name), slot) in headers.iter().zip(&names).zip(slots).take(found) {
            // SAFETY: initialised above, and updated by the system.
            let header = unsafe { header.assume_init_ref() };
            let len = header.msg_len as usize;
            each(
                &slot[..len],
                origin(name, header.msg_hdr.msg_namelen as usize),
            );
        }
        Ok(found)
    }

    fn header(
        piece: *mut libc::iovec,
        name: *mut libc::sockaddr_storage,
        name_len: libc::socklen_t,
    ) -> libc::mmsghdr {
        // SAFETY: all zeroes are a valid header; some systems' have padding, which cannot be named.
        let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
        header.msg_hdr.msg_name = name.cast();
        header.msg_hdr.msg_namelen = name_len;
        header.msg_hdr.msg_iov = piece;
        header.msg_hdr.msg_iovlen = 1;
        header
    }

    /// The address of which the system has written the first `len` bytes.
    fn origin(name: &MaybeUninit<libc::sockaddr_storage>, len: usize) -> Option<Address> {
        use std::net::{Ipv4Addr, SocketAddrV4};
        if len == size_of::<libc::sockaddr_in>() {
            // SAFETY: so many bytes were written, and any bytes are a valid sockaddr_in; the storage is
            // aligned for every kind of address.
            let v4 = unsafe { &*name.as_ptr().cast::<libc::sockaddr_in>() };
            if i32::from(v4.sin_family) == libc::AF_INET {
                let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
                let port = u16::from_be(v4.sin_port);
                return Some(Address::V4(SocketAddrV4::new(ip, port)));
            }
        }
        let mut storage = socket2::SockAddrStorage::zeroed();
        let len = len.min(size_of::<libc::sockaddr_storage>());
        // SAFETY: `len` bytes were written to `name`, and both are at least that large.
        let address = unsafe {
            let whole: &mut libc::sockaddr_storage = storage.view_as();
            ptr::copy_nonoverlapping(name.as_ptr().cast::<u8>(), ptr::from_mut(whole).cast(), len);
            socket2::SockAddr::new(storage, len as libc::socklen_t)
        };
        named(&address)
    }

    pub fn send(socket: &Socket, parcels: &[Parcel<'_>]) -> io::Result<usize> {
        let count = parcels.len().min(BATCH);
        let mut pieces = [const { MaybeUninit::<libc::iovec>::uninit() }; BATCH];
        let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; BATCH];
        for (index, &(bytes, name)) in parcels.iter().take(count).enumerate() {
            let piece = pieces[index].write(libc::iovec {
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: bytes.len(),
            });
            let (name, len) = name.map_or((ptr::null(), 0), Name::raw);
            headers[index].write(header(piece, name.cast_mut().cast(), len));
        }
        // SAFETY: the first `count` headers are initialised and point to names, pieces and bytes that
        // outlive the call; sending writes to none of them.
        let sent = unsafe {
            libc::sendmmsg(
                socket.raw(),
                headers.as_mut_ptr().cast(),
                count as libc::c_uint,
                SEND_FLAGS | libc::MSG_DONTWAIT,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, SocketAddrV6};

    use super::*;

    #[test]
    fn flow_and_scope_survive_the_way_to_the_system_and_back() {
        let address = Address::V6(SocketAddrV6::new(Ipv6Addr::LOCALHOST, 9, 0x1_2345, 7));
        let name = Name::new(&address);
        let Some(Name(Known::Any(name))) = name else {
            panic!("{name:?}")
        };
        assert_eq!(tell(&name), address);
    }
}
