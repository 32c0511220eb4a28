//! Functions of CPython that PyO3 does not declare.

/// Declares functions that the interpreter exports.
///
/// On Windows a symbol is looked for in a library of a known name, and the interpreter's has its version
/// in it; elsewhere the loader finds the symbols in the process.
#[rustfmt::skip]
macro_rules! libpython {
    ($($items:tt)*) => {
        #[cfg_attr(all(windows, Py_3_15, not(Py_GIL_DISABLED)), link(name = "python315", kind = "raw-dylib"))]
        #[cfg_attr(all(windows, Py_3_15, Py_GIL_DISABLED), link(name = "python315t", kind = "raw-dylib"))]
        #[cfg_attr(
            all(windows, Py_3_14, not(Py_3_15), not(Py_GIL_DISABLED)),
            link(name = "python314", kind = "raw-dylib")
        )]
        #[cfg_attr(all(windows, Py_3_14, not(Py_3_15), Py_GIL_DISABLED), link(name = "python314t", kind = "raw-dylib"))]
        #[cfg_attr(
            all(windows, Py_3_13, not(Py_3_14), not(Py_GIL_DISABLED)),
            link(name = "python313", kind = "raw-dylib")
        )]
        #[cfg_attr(all(windows, Py_3_13, not(Py_3_14), Py_GIL_DISABLED), link(name = "python313t", kind = "raw-dylib"))]
        #[cfg_attr(all(windows, Py_3_12, not(Py_3_13)), link(name = "python312", kind = "raw-dylib"))]
        #[cfg_attr(all(windows, not(Py_3_12)), link(name = "python311", kind = "raw-dylib"))]
        unsafe extern "C" {
            $($items)*
        }
    };
}
