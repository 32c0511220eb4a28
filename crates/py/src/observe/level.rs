//! How closely a loop is observed. What a turn does for a level is compiled for it (`turn`), so these are constants.

use crate::event_loop::LoopCore;

/// Nothing.
pub const OFF: u8 = 0;
/// Counts, histograms, the longest steps.
pub const COUNTS: u8 = 1;
/// All of that, and what each task does.
pub const TASKS: u8 = 2;
/// All of that, and every event.
pub const TRACE: u8 = 3;

/// That of this loop.
pub fn of(core: &LoopCore) -> u8 {
    core.observed().map_or(OFF, |observed| observed.level)
}

/// Which it is of levels 0, 1 and 2, as people call those of a loop that is observed.
pub fn depth(level: u8) -> u8 {
    level.saturating_sub(COUNTS)
}
