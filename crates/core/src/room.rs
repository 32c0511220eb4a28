//! How much room the next receive of a stream gets.
//!
//! Most of what arrives is small. It goes through a buffer that all connections share, and is copied into an
//! object of the exact size: an object as large as what might come would cost far more than the copy, since an
//! allocator maps a large block anew each time. Who receives much at once is likely to do so again; then the
//! copy costs more than the room, and the bytes go straight into an object a little larger than the last.

/// From where on the copy costs more, bytes.
const LARGE: usize = 64 * 1024;

/// Rooms grow by so much, bytes.
const STEP: usize = 16 * 1024;

/// The largest room, and that of the shared buffer, bytes.
pub const MAX_ROOM: usize = 256 * 1024;

/// glibc maps blocks of 128 KiB and more by themselves, until one of that size was freed. A larger room for
/// fewer bytes than that would be mapped, shrunk and unmapped each time.
const MAPPED: usize = 127 * 1024;

/// What one connection's receives were like.
#[derive(Debug, Default, Clone, Copy)]
pub struct Room {
    next: usize,
}

impl Room {
    /// The room of the next receive, bytes; None: the shared buffer.
    #[inline]
    pub fn next(&self) -> Option<usize> {
        (self.next > 0).then_some(self.next)
    }

    /// So many bytes were received into it.
    #[inline]
    pub fn received(&mut self, len: usize) {
        let room = self.next().unwrap_or(MAX_ROOM);
        self.next = if len >= room {
            (room * 2).min(MAX_ROOM)
        } else if len <= LARGE {
            0
        } else {
            let room = (len / STEP + 1) * STEP;
            if len < MAPPED { room.min(MAPPED) } else { room }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_receives_share() {
        let mut room = Room::default();
        for len in [1, 1024, LARGE] {
            room.received(len);
            assert_eq!(room.next(), None);
        }
    }

    #[test]
    fn a_large_receive_gets_a_little_more_room_the_next_time() {
        for (len, next) in [
            (LARGE + 1, 80 * 1024),
            (100 * 1024, 112 * 1024),
            (113 * 1024, MAPPED),
            (126 * 1024, MAPPED),
            (130 * 1024, 144 * 1024),
        ] {
            let mut room = Room::default();
            room.received(len);
            assert_eq!(room.next(), Some(next));
            assert!(next > len && next <= len + STEP);
            room.received(5);
            assert_eq!(room.next(), None, "until a small one comes");
        }
    }

    #[test]
    fn a_room_that_was_filled_doubles_up_to_the_largest() {
        let mut room = Room::default();
        room.received(LARGE + 1);
        room.received(80 * 1024);
        assert_eq!(room.next(), Some(160 * 1024));
        room.received(160 * 1024);
        assert_eq!(room.next(), Some(MAX_ROOM));
        room.received(MAX_ROOM);
        assert_eq!(room.next(), Some(MAX_ROOM));
        let mut room = Room::default();
        room.received(MAX_ROOM);
        assert_eq!(room.next(), Some(MAX_ROOM), "the shared one was filled");
    }
}
