//! Evidence that a part of the server was built.
//!
//! A part that needs no library is compiled in every build, and left out of the program by its types. Without its cargo
//! feature there is no value of the evidence, and so no value of a struct that contains it: the compiler removes the
//! branches that handle one. Parts with libraries have a module that takes their place, such as `net/tls_missing.rs`.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Evidence {
    #[cfg(feature = "backplane")]
    Built,
}

/// Evidence that this build has the backplane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HasBackplane(Evidence);

impl HasBackplane {
    /// Returns the evidence; `None` in a build without the cargo feature `backplane`.
    pub const fn get() -> Option<HasBackplane> {
        #[cfg(feature = "backplane")]
        return Some(HasBackplane(Evidence::Built));
        #[cfg(not(feature = "backplane"))]
        None
    }
}
