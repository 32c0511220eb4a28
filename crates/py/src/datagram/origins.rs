//! Addresses that datagrams came from, as the Python objects they were told as.
//!
//! A server hears from the same addresses again and again, and answers to the very object that it was
//! handed. So the object is made once, and an answer needs no reading of it. The table is a cache of fixed
//! places: it begins with one, which is enough for an endpoint with one peer, and grows while addresses
//! fight for places.

use pyo3::prelude::*;
use tideloop_sys::datagram::Name;
use tideloop_sys::socket::Address;

/// Places at most: ten kilobytes per endpoint.
const MOST: usize = 256;

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
        let place = place(address, self.places.len())?;
        let origin = self.places[place].as_ref()?;
        if origin.address != *address {
            return None;
        }
        self.last = place;
        Some(origin.told.clone_ref(py))
    }

    /// Remembers what an address was told as.
    pub fn remember(&mut self, address: Address, told: Py<PyAny>) -> Forgotten {
        let mut forgotten = Vec::new();
        let taken = match place(&address, self.places.len()) {
            Some(place) => self.places[place].is_some(),
            None => true,
        };
        if taken && self.places.len() < MOST {
            forgotten = self.grow();
        }
        if let Some(place) = place(&address, self.places.len()) {
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
            if let Some(place) = place(&origin.address, len) {
                forgotten.push(self.places[place].replace(origin));
            }
        }
        forgotten
    }
}

/// Where an address has its place among `count`; None for kinds that are not kept.
#[inline]
fn place(address: &Address, count: usize) -> Option<usize> {
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
    (count > 0).then(|| mixed as usize & (count - 1))
}
