// Package framework is what the end-to-end tests share: a client of a real cluster that has Rowan, a namespace for every test, objects as users write
// them, waiting on watches, commands in pods, and one kill of one process in every flow.
//
// Contract: a test gets a namespace of its own, which is removed when it ends; when it failed, what is in it is written to the test's artifacts first.
// Nothing sleeps: every wait ends by a watched condition, or with the object's last state, its events and the reason in the test's failure. The kill is
// drawn from a printed seed, so that a run can be repeated.
package framework
