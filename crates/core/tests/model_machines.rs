//! The short form of the fuzzers: every machine against its model, on the same random operations every time.

#![allow(
    clippy::panic,
    reason = "a difference between machine and model is one"
)]

mod models;

/// Programs for each machine.
const PROGRAMS: u64 = 4_000;

/// Bytes of a program, at most.
const LONGEST: usize = 600;

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = self.draw() as usize % LONGEST;
        (0..length).map(|_| self.draw() as u8).collect()
    }
}

#[test]
fn machines_do_as_their_models() {
    for (name, check) in models::ALL {
        for seed in 0..PROGRAMS {
            let program = Random(seed).bytes();
            if let Err(panic) = std::panic::catch_unwind(|| check(&program)) {
                eprintln!("{name}, seed {seed}: {program:?}");
                std::panic::resume_unwind(panic);
            }
        }
    }
}
