//! Programs the project needs besides cargo: where each one comes from and where it is cached.
