//! Inbox: bytes that have come and that nobody has read yet, and how they are divided.
//!
//! A piece that came alone is kept as it is: whoever reads all of it gets that very piece, without a
//! copy. From the second one on the bytes are joined in one buffer, so that a separator is found across
//! pieces, and every byte is copied once more at most, however many small reads there are.

use std::mem;

/// Bytes by their owner `B`, in the order in which they came.
#[derive(Debug)]
pub struct Inbox<B> {
    held: Held<B>,
    /// How much of what is held was read already.
    start: usize,
}

#[derive(Debug)]
enum Held<B> {
    Nothing,
    Piece(B),
    Joined(Vec<u8>),
}

/// Bytes that were taken out.
#[derive(Debug)]
#[must_use]
pub enum Taken<B, T> {
    /// A whole piece, as it came.
    Whole(B),
    /// What was made of them, and a piece that is now read to its end.
    Part(T, Option<B>),
}

/// Pieces whose bytes are somewhere else now, for the caller to drop.
pub type Surplus<B> = [Option<B>; 2];

impl<B> Default for Inbox<B> {
    fn default() -> Self {
        Self {
            held: Held::Nothing,
            start: 0,
        }
    }
}

impl<B: AsRef<[u8]>> Inbox<B> {
    #[inline]
    pub fn len(&self) -> usize {
        match &self.held {
            Held::Nothing => 0,
            Held::Piece(piece) => piece.as_ref().len() - self.start,
            Held::Joined(bytes) => bytes.len() - self.start,
        }
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn as_slice(&self) -> &[u8] {
        match &self.held {
            Held::Nothing => &[],
            Held::Piece(piece) => &piece.as_ref()[self.start..],
            Held::Joined(bytes) => &bytes[self.start..],
        }
    }

    /// Appends a piece.
    #[must_use = "pieces are dropped by the caller"]
    pub fn push(&mut self, piece: B) -> Surplus<B> {
        match mem::replace(&mut self.held, Held::Nothing) {
            Held::Nothing => {
                self.held = Held::Piece(piece);
                self.start = 0;
                [None, None]
            }
            Held::Piece(first) => {
                let left = &first.as_ref()[self.start..];
                let mut bytes = Vec::with_capacity(left.len() + piece.as_ref().len());
                bytes.extend_from_slice(left);
                bytes.extend_from_slice(piece.as_ref());
                self.held = Held::Joined(bytes);
                self.start = 0;
                [Some(first), Some(piece)]
            }
            Held::Joined(mut bytes) => {
                // Moved to the front when most of it was read, so that it does not grow for ever.
                if self.start > bytes.len() / 2 {
                    bytes.drain(..self.start);
                    self.start = 0;
                }
                bytes.extend_from_slice(piece.as_ref());
                self.held = Held::Joined(bytes);
                [Some(piece), None]
            }
        }
    }

    /// Takes the first `count` bytes, or all if there are fewer.
    #[inline]
    pub fn take<T>(&mut self, count: usize, make: impl FnOnce(&[u8]) -> T) -> Taken<B, T> {
        let count = count.min(self.len());
        if self.start == 0
            && let Held::Piece(piece) = &self.held
            && piece.as_ref().len() == count
            && let Held::Piece(piece) = mem::replace(&mut self.held, Held::Nothing)
        {
            return Taken::Whole(piece);
        }
        let made = make(&self.as_slice()[..count]);
        Taken::Part(made, self.skip(count))
    }

    /// Lets go of the first `count` bytes, or of all if there are fewer.
    #[must_use = "pieces are dropped by the caller"]
    pub fn skip(&mut self, count: usize) -> Option<B> {
        if count < self.len() {
            self.start += count;
            return None;
        }
        self.clear()
    }

    /// Lets go of everything.
    #[must_use = "pieces are dropped by the caller"]
    pub fn clear(&mut self) -> Option<B> {
        self.start = 0;
        match mem::replace(&mut self.held, Held::Nothing) {
            Held::Piece(piece) => Some(piece),
            Held::Nothing | Held::Joined(_) => None,
        }
    }
}

/// What the search for the end of a message comes to. All numbers count from the first unread byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Scan {
    /// A separator, from `start` to `end`.
    Found { start: usize, end: usize },
    /// None yet; there is none before `offset`, where the search goes on when more has come.
    Missing { offset: usize },
    /// None within the limit: `consumed` bytes hold no separator.
    TooLong { consumed: usize },
    /// A separator, but behind more bytes than the limit allows.
    FoundTooLate { start: usize },
}

/// Looks for the separator that ends first, from `offset` on.
///
/// `separators`: not empty, none of them empty, the shortest first.
pub fn scan(bytes: &[u8], separators: &[&[u8]], offset: usize, limit: usize) -> Scan {
    let (Some(shortest), Some(longest)) = (separators.first(), separators.last()) else {
        return Scan::Missing { offset };
    };
    // Less than one separator is left to look at.
    if bytes.len() < offset + shortest.len() {
        return Scan::Missing { offset };
    }
    let mut found: Option<(usize, usize)> = None;
    for separator in separators {
        let Some(start) = find(&bytes[offset..], separator).map(|at| at + offset) else {
            continue;
        };
        let end = start + separator.len();
        if found.is_none_or(|(_, first)| end < first) {
            found = Some((start, end));
        }
    }
    match found {
        Some((start, _)) if start > limit => Scan::FoundTooLate { start },
        Some((start, end)) => Scan::Found { start, end },
        None => {
            // The last bytes may be the beginning of a separator.
            let offset = (bytes.len() + 1).saturating_sub(longest.len());
            match offset > limit {
                true => Scan::TooLong { consumed: offset },
                false => Scan::Missing { offset },
            }
        }
    }
}

/// Where `wanted`, which is not empty, begins first.
fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    let (&first, rest) = wanted.split_first()?;
    let mut from = 0;
    loop {
        let at = from + find_byte(bytes.get(from..)?, first)?;
        if bytes[at + 1..].starts_with(rest) {
            return Some(at);
        }
        from = at + 1;
    }
}

/// Where a byte is first. A block is looked at as a whole, which compilers turn into vector instructions.
fn find_byte(bytes: &[u8], wanted: u8) -> Option<usize> {
    const BLOCK: usize = 64;
    let mut from = 0;
    for block in bytes.chunks_exact(BLOCK) {
        if block
            .iter()
            .fold(false, |found, &byte| found | (byte == wanted))
        {
            break;
        }
        from += BLOCK;
    }
    let at = bytes[from..].iter().position(|&byte| byte == wanted)?;
    Some(from + at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn taken(inbox: &mut Inbox<Vec<u8>>, count: usize) -> Vec<u8> {
        match inbox.take(count, <[u8]>::to_vec) {
            Taken::Whole(piece) => piece,
            Taken::Part(bytes, _) => bytes,
        }
    }

    #[test]
    fn a_whole_piece_comes_out_as_it_went_in() {
        let mut inbox = Inbox::default();
        let piece = b"message".to_vec();
        let address = piece.as_ptr();
        assert_eq!(inbox.push(piece), [None, None]);
        match inbox.take(100, <[u8]>::to_vec) {
            Taken::Whole(whole) => assert_eq!(whole.as_ptr(), address),
            Taken::Part(..) => panic!("a copy"),
        }
        assert!(inbox.is_empty());
    }

    #[test]
    fn pieces_are_handed_back_once_they_are_joined_or_read() {
        let mut inbox = Inbox::default();
        assert_eq!(inbox.push(b"ab".to_vec()), [None, None]);
        assert_eq!(inbox.skip(1), None);
        assert_eq!(
            inbox.push(b"cd".to_vec()),
            [Some(b"ab".to_vec()), Some(b"cd".to_vec())]
        );
        assert_eq!(inbox.push(b"ef".to_vec()), [Some(b"ef".to_vec()), None]);
        assert_eq!(inbox.as_slice(), b"bcdef");
        assert_eq!(inbox.clear(), None);
        assert_eq!(inbox.push(b"gh".to_vec()), [None, None]);
        assert_eq!(taken(&mut inbox, 1), b"g");
        match inbox.take(1, <[u8]>::to_vec) {
            Taken::Part(bytes, piece) => {
                assert_eq!((bytes, piece), (b"h".to_vec(), Some(b"gh".to_vec())));
            }
            Taken::Whole(_) => panic!("it was begun"),
        }
    }

    #[test]
    fn a_byte_is_found_in_every_place() {
        for len in [1, 63, 64, 65, 128, 200] {
            for at in 0..len {
                let mut bytes = vec![0; len];
                bytes[at] = 7;
                assert_eq!(find_byte(&bytes, 7), Some(at));
            }
            assert_eq!(find_byte(&vec![0; len], 7), None);
        }
    }

    #[test]
    fn a_separator_may_begin_in_what_was_looked_at() {
        let scanned = scan(b"ab\r", &[b"\r\n"], 0, 100);
        assert_eq!(scanned, Scan::Missing { offset: 2 });
        assert_eq!(
            scan(b"ab\r\n", &[b"\r\n"], 2, 100),
            Scan::Found { start: 2, end: 4 }
        );
    }

    #[test]
    fn the_separator_that_ends_first_counts() {
        let separators: [&[u8]; 2] = [b"b", b"aba"];
        assert_eq!(
            scan(b"xababa", &separators, 0, 100),
            Scan::Found { start: 2, end: 3 }
        );
    }

    #[test]
    fn the_limit_is_on_what_comes_before_the_separator() {
        assert_eq!(
            scan(b"abc\n", &[b"\n"], 0, 3),
            Scan::Found { start: 3, end: 4 }
        );
        assert_eq!(
            scan(b"abcd\n", &[b"\n"], 0, 3),
            Scan::FoundTooLate { start: 4 }
        );
        assert_eq!(scan(b"abc", &[b"\n"], 0, 3), Scan::Missing { offset: 3 });
        assert_eq!(scan(b"abcd", &[b"\n"], 0, 3), Scan::TooLong { consumed: 4 });
    }

    proptest! {
        #[test]
        fn bytes_come_out_as_they_went_in(
            steps in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 1..40), 0..60usize), 1..80),
        ) {
            let mut inbox = Inbox::default();
            let mut model: Vec<u8> = Vec::new();
            for (push, piece, count) in steps {
                if push {
                    model.extend(&piece);
                    drop(inbox.push(piece));
                } else {
                    let count = count.min(model.len());
                    let rest = model.split_off(count);
                    let expected = std::mem::replace(&mut model, rest);
                    prop_assert_eq!(taken(&mut inbox, count), expected);
                }
                prop_assert_eq!(inbox.as_slice(), &model[..]);
                prop_assert_eq!(inbox.len(), model.len());
            }
        }

        #[test]
        fn pieces_do_not_change_what_is_found(
            bytes in prop::collection::vec(prop::sample::select(b"ab\r\n".to_vec()), 0..60),
            cuts in prop::collection::vec(0..60usize, 0..6),
            two in any::<bool>(),
        ) {
            let separators: &[&[u8]] = if two { &[b"\n", b"a\r\n"] } else { &[b"\r\n"] };
            let whole = scan(&bytes, separators, 0, usize::MAX);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.push(bytes.len());
            cuts.sort_unstable();
            let mut offset = 0;
            let mut last = Scan::Missing { offset: 0 };
            for cut in cuts {
                last = scan(&bytes[..cut], separators, offset, usize::MAX);
                match last {
                    Scan::Missing { offset: next } => offset = next,
                    _ => break,
                }
            }
            match (whole, last) {
                (Scan::Missing { .. }, last) => {
                    let missing = matches!(last, Scan::Missing { .. });
                    prop_assert!(missing);
                }
                (whole, last) => prop_assert_eq!(whole, last),
            }
        }
    }
}
