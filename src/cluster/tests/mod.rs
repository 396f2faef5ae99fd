//! The frame and the rule by properties.

mod frames;
