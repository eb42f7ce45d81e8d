//! What every program does with bad input: one `error: …` line that says what was wrong with which argument or file, exit
//! status 1 (2 for usage), and nothing left behind.
