"""Files and bytes: read with distrust, written exactly. No module here knows a method; `layout` alone knows what a family is."""
