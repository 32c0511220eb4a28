//! The short form of the fuzzers: every machine against its model, on the same random operations every time.

#![allow(
    clippy::panic,
    reason = "a difference between machine and model is one"
)]

mod models;
mod random;

use random::Random;

/// Programs for each machine.
const PROGRAMS: u64 = 4_000;

/// Bytes of a program, at most.
const LONGEST: usize = 600;

fn bytes(random: &mut Random) -> Vec<u8> {
    let length = random.draw() as usize % LONGEST;
    (0..length).map(|_| random.draw() as u8).collect()
}

#[test]
fn machines_do_as_their_models() {
    for (name, check) in models::ALL {
        for seed in 0..PROGRAMS {
            let program = bytes(&mut Random(seed));
            if let Err(panic) = std::panic::catch_unwind(|| check(&program)) {
                eprintln!("{name}, seed {seed}: {program:?}");
                std::panic::resume_unwind(panic);
            }
        }
    }
}
