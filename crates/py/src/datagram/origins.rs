//! Addresses that datagrams came from, as the Python objects they were told as.
//!
//! A server hears from the same addresses again and again, and answers to the very object that it was
//! handed. So the object is made once, and an answer needs no reading of it. The table is a cache of fixed
//! places: it begins with one, which is enough for an endpoint with one peer, and grows while addresses
//! fight for places. An address may be in any place of a group, [`WAYS`] of them: with one place for each, a hundred
//! peers would push a third of each other out of 256 places, again and again.

use pyo3::prelude::*;
use tideloop_sys::datagram::Name;
use tideloop_sys::socket::Address;

/// Places at most: ten kilobytes per endpoint.
const MOST: usize = 256;

/// Places of a group.
const WAYS: usize = 4;

struct Origin {
    address: Address,
    told: Py<PyAny>,
}

/// What is known of origins.
#[derive(Default)]
pub struct Origins {
    /// As many as a power of two.
    places: Vec<Option<Origin>>,
    /// The place of the last one that was found or remembered.
    last: usize,
    /// Which of a full group goes next.
    next: usize,
}

/// Objects that the table has let go of, to be dropped outside of the cell.
#[must_use = "dropped outside of the cell"]
pub struct Forgotten {
    _objects: Vec<Option<Origin>>,
}

impl Origins {
    /// The object that stands for an address, if it is known.
    #[inline]
    pub fn find(&mut self, py: Python<'_>, address: &Address) -> Option<Py<PyAny>> {
        let start = group(address, self.places.len())?;
        let places = self.places.iter().enumerate().skip(start).take(WAYS);
        for (place, origin) in places {
            // They are filled in order.
            let origin = origin.as_ref()?;
            if origin.address == *address {
                self.last = place;
                return Some(origin.told.clone_ref(py));
            }
        }
        None
    }

    /// Remembers what an address was told as.
    pub fn remember(&mut self, address: Address, told: Py<PyAny>) -> Forgotten {
        let mut forgotten = Vec::new();
        let mut free = free(&address, &self.places);
        while free.is_none() && self.places.len() < MOST && is_kept(&address) {
            forgotten.append(&mut self.grow());
            free = self::free(&address, &self.places);
        }
        let place = free.or_else(|| {
            self.next = (self.next + 1) % WAYS;
            Some(group(&address, self.places.len())? + self.next)
        });
        if let Some(place) = place {
            forgotten.push(self.places[place].replace(Origin { address, told }));
            self.last = place;
        }
        Forgotten {
            _objects: forgotten,
        }
    }

    /// The name of the address that was delivered last, if that is what is asked for.
    #[inline]
    pub fn name_of(&self, told: &Bound<'_, PyAny>) -> Option<Name> {
        let origin = self.places.get(self.last)?.as_ref()?;
        if !origin.told.is(told) {
            return None;
        }
        Name::new(&origin.address)
    }

    fn grow(&mut self) -> Vec<Option<Origin>> {
        let len = (self.places.len() * 4).clamp(1, MOST);
        let mut forgotten = Vec::new();
        let old = std::mem::take(&mut self.places);
        self.places.resize_with(len, || None);
        for origin in old.into_iter().flatten() {
            match free(&origin.address, &self.places) {
                Some(place) => self.places[place] = Some(origin),
                None => forgotten.push(Some(origin)),
            }
        }
        forgotten
    }
}

/// The first free place of an address's group.
fn free(address: &Address, places: &[Option<Origin>]) -> Option<usize> {
    let start = group(address, places.len())?;
    let end = places.len().min(start + WAYS);
    (start..end).find(|&place| places[place].is_none())
}

/// Whether addresses of this kind are kept.
fn is_kept(address: &Address) -> bool {
    group(address, 1).is_some()
}

/// Where the group of an address begins among `count` places; None for kinds that are not kept.
#[inline]
fn group(address: &Address, count: usize) -> Option<usize> {
    let bits = match address {
        Address::V4(address) => {
            (u64::from(address.ip().to_bits()) << 16) | u64::from(address.port())
        }
        Address::V6(address) => {
            let ip = address.ip().to_bits();
            (ip as u64) ^ ((ip >> 64) as u64).rotate_left(23) ^ (u64::from(address.port()) << 7)
        }
        Address::Unix(_) | Address::Other => return None,
    };
    // Fibonacci hashing: the upper bits of the product depend on all bits.
    let mixed = bits.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    (count > 0).then(|| mixed as usize & (count - 1) & !(WAYS - 1))
}
