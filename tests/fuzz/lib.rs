//! The rules that the fuzz targets check, and the parts of the suite's support that they use.

pub mod checks;

#[path = "../suite/support"]
pub mod support {
    pub mod deflate;
    pub mod frames;
    pub mod http;
    pub mod rig;
}
