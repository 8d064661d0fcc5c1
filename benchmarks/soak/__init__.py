"""An hour of churn against one verifier process: does its memory stay flat?"""
