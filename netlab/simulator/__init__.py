"""A discrete-event simulation of device, link and verifier that runs the product's own line, acceptance and pace.

`run.simulate` plays answers; `pair` says what drafter and target would have done, `link` how long messages travel,
`device` and `verifier` are the two sides. `oracle` bounds what any policy could do, `policies` names what there is,
`rivals` holds the field's own rules, and `sweep` compares them over a grid. Times are in milliseconds, everywhere.
"""
